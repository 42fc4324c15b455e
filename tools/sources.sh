#!/usr/bin/env bash
# Lists our C sources and headers, one a line, relative to the project.
cd "$(dirname "$0")/.." && find include src cli tests fuzz bench examples -name '*.[ch]' -o -name '*.inc' |
    grep -v 'src/text/unicode_tables.c' | sort
