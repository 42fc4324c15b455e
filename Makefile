# The front door. CMake does the work; this says what to do, and installs what is missing on Debian.
#
#   make            configure and build into build/
#   make demo       the main job on a small text, with the bundled model; TEXT=FILE: on yours
#   make test       all tests, plain and under sanitizers
#   make check      house rules: formatting, layering, includes, banned words
#   make bench      speed beside the machine's limits
#   make install    PREFIX=/usr/local, DESTDIR for packages
#   make format     clang-format over our sources
#   make sanitize   the tests under AddressSanitizer and UndefinedBehaviorSanitizer only
#   make clean

BUILD     ?= build
PREFIX    ?= /usr/local
JOBS      ?= $(shell nproc 2>/dev/null || echo 2)
TEST_JOBS ?= 2
CONFIGURE ?=

GENERATOR := $(if $(shell command -v ninja 2>/dev/null),-G Ninja,)
# A folder that was configured keeps its generator.
configure  = cmake -S . -B $(1) $(if $(wildcard $(1)/CMakeCache.txt),,$(GENERATOR)) $(2) $(CONFIGURE)

.PHONY: all deps build program test sanitize check bench demo install format clean help

all: build

help:
	@sed -n 's/^#   //p' Makefile

deps:
	@tools/install-deps.sh

build:
	$(call configure,$(BUILD),-DCMAKE_BUILD_TYPE=Release)
	cmake --build $(BUILD) --parallel $(JOBS)

program:
	$(call configure,$(BUILD),-DCMAKE_BUILD_TYPE=Release)
	cmake --build $(BUILD) --parallel $(JOBS) --target icae_cli

demo: deps
	@tools/quietly.sh "building icae" $(MAKE) --no-print-directory program
	@demo/run.sh $(BUILD)/icae $(if $(TEXT),"$(TEXT)")

test:
	@tools/install-deps.sh --tests
	@tools/openai-client.sh $(BUILD)/client
	$(call configure,$(BUILD),-DCMAKE_BUILD_TYPE=Release -DICAE_WERROR=ON)
	cmake --build $(BUILD) --parallel $(JOBS)
	ctest --test-dir $(BUILD) --output-on-failure -j $(TEST_JOBS)
	$(MAKE) --no-print-directory sanitize

sanitize:
	$(call configure,$(BUILD)/sanitize,-DCMAKE_BUILD_TYPE=Debug -DICAE_SANITIZE=ON -DICAE_WERROR=ON -DICAE_BENCH=OFF)
	cmake --build $(BUILD)/sanitize --parallel $(JOBS)
	ctest --test-dir $(BUILD)/sanitize --output-on-failure -j $(TEST_JOBS)

check:
	@tools/check-format.sh
	@tools/check-layering.sh
	@tools/check-includes.sh
	@tools/check-banned.sh

bench: build
	python3 bench/run.py --build $(BUILD)
	python3 bench/serve.py --build $(BUILD)

install: build
	cmake -DCMAKE_INSTALL_PREFIX="$(PREFIX)" $(BUILD) >/dev/null
	cmake --build $(BUILD) --parallel $(JOBS)
	DESTDIR="$(DESTDIR)" cmake --install $(BUILD)

format:
	clang-format -i $$(tools/sources.sh)

clean:
	rm -rf $(BUILD)
