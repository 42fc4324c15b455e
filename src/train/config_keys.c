/*
 * config_keys.c - every key of a training run's configuration: name, type, default, range, meaning; and
 * the presets. Files, flags, help, --print-config, the checkpoint's copy and the comparison on resume
 * all follow from this table.
 */
#include "train/config.h"

const char *const ic_key_types[] = {"text",   "choice", "yes/no", "whole number",
                                    "number", "size",   "list",   "list of numbers"};

/* Short names, for the table only. */
#define TEXT    IC_KEY_TEXT
#define CHOICE  IC_KEY_CHOICE
#define BOOL    IC_KEY_BOOL
#define INT     IC_KEY_INT
#define REAL    IC_KEY_REAL
#define SIZE    IC_KEY_SIZE
#define LIST    IC_KEY_LIST
#define REALS   IC_KEY_REALS
#define DECIDES IC_KEY_DECIDES
#define COMMAND IC_KEY_COMMAND
#define AT      IC_KEY_AT
#define BIG     9e15

const ic_key ic_keys[] = {
    {"preset", CHOICE, AT(preset), "auto", NULL, 0, 0, "auto|none|paper|demo", 0,
     "values of keys that are not set: the paper's, or those that suit the bundled model; auto: "
     "demo "
     "without `base`, else none"},
    /* the adapter */
    {"base", TEXT, AT(base), "", NULL, 0, 0, NULL, 0,
     "base model: Hugging Face folder or GGUF file; empty: the bundled one"},
    {"adapter", TEXT, AT(adapter), "", NULL, 0, 0, NULL, DECIDES,
     "adapter to start from; empty: a fresh one; demo: the bundled one"},
    {"compute", CHOICE, AT(compute), "auto", NULL, 0, 0, "auto|f32|bf16", DECIDES,
     "arithmetic of the products"},
    {"template", TEXT, AT(template_name), "", NULL, 0, 0, NULL, DECIDES,
     "chat template around prompts; empty: recognised from the model's files"},
    {"k", INT, AT(k), "128", NULL, 1, 65536, NULL, DECIDES, "memory slots a segment"},
    {"rate", REAL, AT(rate), "4", NULL, 1, 1024, NULL, DECIDES, "text tokens a slot"},
    {"rates", REALS, AT(rates), "[]", NULL, 1, 1024, NULL, DECIDES,
     "rates to serve, drawn per sample; empty: only `rate`"},
    {"rank", INT, AT(rank), "128", NULL, 1, 65536, NULL, DECIDES, "rank of the LoRA matrices"},
    {"alpha", REAL, AT(alpha), "32", NULL, 0, 1e6, NULL, DECIDES, "LoRA scale is alpha / rank"},
    {"dropout", REAL, AT(dropout), "0.05", NULL, 0, 0.95, NULL, DECIDES,
     "dropout on the input of LoRA's A"},
    {"targets", LIST, AT(targets), "[\"q_proj\", \"v_proj\"]", NULL, 0, 0, NULL, DECIDES,
     "linear layers with LoRA: q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"},
    {"positions", CHOICE, AT(positions), "sequential", NULL, 0, 0, "sequential|spread", DECIDES,
     "where slots stand: in a row, or where their text stood"},
    {"slots", CHOICE, AT(slots), "fixed", NULL, 0, 0, "fixed|proportional", DECIDES,
     "slots of a short segment: k, or by its length"},
    {"lora", CHOICE, AT(lora), "encoder", NULL, 0, 0, "encoder|both", DECIDES,
     "what LoRA is part of; both: of the decoder too, to teach a base to read slots (then merge "
     "it)"},
    {"lm_token", BOOL, AT(lm_token), "false", NULL, 0, 0, NULL, DECIDES,
     "continuations start with a trained [LM] token"},
    {"bos", BOOL, AT(bos), "false", NULL, 0, 0, NULL, DECIDES,
     "texts are compressed with the tokenizer's bos in front"},
    {"span", INT, AT(span), "0", NULL, 0, BIG, NULL, DECIDES,
     "tokens that are restored at a time, as the adapter will tell; 0: max_tokens"},
    {"init", CHOICE, AT(init), "token_scale", NULL, 0, 0, "normal|token_scale|token_means", DECIDES,
     "memory embeddings: N(0, 1), at the scale of the token table, or means of token embeddings"},
    /* text */
    {"data", LIST, AT(data), "[]", NULL, 0, 0, NULL, 0,
     "training text: files and patterns, each may end in :WEIGHT (how often it is read)"},
    {"eval_data", LIST, AT(eval_data), "[]", NULL, 0, 0, NULL, 0,
     "held-out text; empty: no evaluation"},
    {"cache", TEXT, AT(cache), "", NULL, 0, 0, NULL, 0,
     "folder of token caches; empty: $XDG_CACHE_HOME/icae or ~/.cache/icae"},
    {"strict", BOOL, AT(strict), "false", NULL, 0, 0, NULL, 0, "a bad line of text ends the run"},
    {"min_tokens", INT, AT(min_tokens), "16", NULL, 1, 1 << 24, NULL, DECIDES,
     "shortest context that is drawn"},
    {"max_tokens", INT, AT(max_tokens), "0", NULL, 0, 1 << 24, NULL, DECIDES,
     "longest context; 0: four segments, as far as the model's positions go"},
    {"multi_share", REAL, AT(multi_share), "0.25", NULL, 0, 1, NULL, DECIDES,
     "share of contexts of more than one segment"},
    {"lengths", CHOICE, AT(lengths), "uniform", NULL, 0, 0, "uniform|log|longest", DECIDES,
     "distribution of context lengths within their bounds"},
    {"grow", INT, AT(grow), "0", NULL, 0, BIG, NULL, DECIDES,
     "steps in which the longest context grows from min_tokens to max_tokens"},
    {"longer", CHOICE, AT(longer), "split", NULL, 0, 0, "split|cut|skip", DECIDES,
     "documents longer than max_tokens: used in pieces, at their start only, or not at all"},
    {"continuation", INT, AT(continuation), "0", NULL, 0, 1 << 24, NULL, DECIDES,
     "longest continuation; 0: a segment's tokens, at least 256"},
    {"lm_skip", INT, AT(lm_skip), "8", NULL, 0, 64, NULL, DECIDES,
     "first tokens of a continuation that are not learnt; 8 as in the published code"},
    {"ae_weight", REAL, AT(ae_weight), "0.5", "0", 0, 1e6, NULL, DECIDES,
     "share of restoring (AE)"},
    {"lm_weight", REAL, AT(lm_weight), "0.5", "0", 0, 1e6, NULL, DECIDES,
     "share of continuing (LM)"},
    {"ft_weight", REAL, AT(ft_weight), "0", "1", 0, 1e6, NULL, DECIDES, "share of answering (FT)"},
    {"plain_share", REAL, AT(plain_share), "0.5", NULL, 0, 1, NULL, DECIDES,
     "lora = both: share of continuing and answering from the text itself, so that the base stays "
     "what it is"},
    {"distill", REAL, AT(distill), "0", NULL, 0, 1, NULL, DECIDES,
     "continuing and answering from slots: share of each target that is what the base says after "
     "reading the text itself"},
    /* the optimiser */
    {"steps", INT, AT(steps), "0", NULL, 0, BIG, NULL, DECIDES,
     "optimiser steps; without steps, tokens and hours: 1000"},
    {"tokens", INT, AT(tokens), "0", NULL, 0, BIG, NULL, DECIDES,
     "ends after so many tokens of text"},
    {"hours", REAL, AT(hours), "0", NULL, 0, 1e6, NULL, DECIDES, "ends after so many hours"},
    {"batch", INT, AT(batch), "16", NULL, 1, 1 << 24, NULL, 0, "samples a step on each process"},
    {"accumulate", INT, AT(accumulate), "1", NULL, 1, 1 << 20, NULL, 0,
     "batches added up before a step"},
    {"batch_tokens", INT, AT(batch_tokens), "0", NULL, 0, 1 << 30, NULL, 0,
     "tokens that run at a time; more samples follow each other. 0: what memory allows"},
    {"lr", REAL, AT(lr), "1e-4", "5e-5", 0, 1e30, NULL, DECIDES, "learning rate"},
    {"warmup", INT, AT(warmup), "100", NULL, 0, BIG, NULL, DECIDES, "steps in which it rises"},
    {"schedule", CHOICE, AT(schedule), "cosine", NULL, 0, 0, "cosine|linear|constant", DECIDES,
     "how it falls"},
    {"min_lr", REAL, AT(min_lr), "0", NULL, 0, 1e30, NULL, DECIDES, "to what it falls"},
    {"clip", REAL, AT(clip), "1", NULL, 0, 1e30, NULL, DECIDES,
     "bound on the gradient's norm; 0: none"},
    {"decay", REAL, AT(decay), "0", NULL, 0, 1e6, NULL, DECIDES, "decoupled weight decay"},
    {"beta1", REAL, AT(beta1), "0.9", NULL, 0, 0.9999999, NULL, DECIDES, "of AdamW"},
    {"beta2", REAL, AT(beta2), "0.999", NULL, 0, 0.9999999, NULL, DECIDES, "of AdamW"},
    {"eps", REAL, AT(eps), "1e-8", NULL, 0, 1, NULL, DECIDES, "of AdamW"},
    {"recompute", CHOICE, AT(recompute), "auto", NULL, 0, 0, "auto|0|1|2|3", 0,
     "0 keeps all activations … 3 keeps layer inputs only; auto: by memory"},
    /* the run */
    {"out", TEXT, AT(out), "icae-run", NULL, 0, 0, NULL, 0, "folder of the run"},
    {"checkpoint_every", INT, AT(checkpoint_every), "0", NULL, 0, BIG, NULL, 0,
     "steps between checkpoints; 0: by minutes alone"},
    {"checkpoint_minutes", REAL, AT(checkpoint_minutes), "10", NULL, 0, 1e6, NULL, 0,
     "minutes between checkpoints; 0: by steps alone"},
    {"eval_every", INT, AT(eval_every), "250", NULL, 0, BIG, NULL, 0,
     "steps between evaluations; 0: at the end only"},
    {"eval_samples", INT, AT(eval_samples), "64", NULL, 1, 1 << 20, NULL, 0,
     "held-out samples for each objective"},
    {"seed", INT, AT(seed), "1", NULL, 0, BIG, NULL, DECIDES, "of all random draws"},
    {"threads", INT, AT(threads), "0", NULL, 0, 4096, NULL, 0, "0: one a physical core"},
    {"memory", SIZE, AT(memory), "0", NULL, 0, 9e18, NULL, 0,
     "bound on all memory, such as 24G; 0: what is free"},
    {"timeout", REAL, AT(timeout), "1800", NULL, 0, 1e9, NULL, 0,
     "seconds to wait for other processes; 0: for ever"},
    {"resume", BOOL, AT(resume), "false", NULL, 0, 0, NULL, COMMAND,
     "go on from the last checkpoint"},
    {"force", BOOL, AT(force), "false", NULL, 0, 0, NULL, COMMAND,
     "resume although the configuration changed, or start anew over an old run"},
    {"estimate", BOOL, AT(estimate), "false", NULL, 0, 0, NULL, COMMAND,
     "only tell memory and time that the run would take"},
};

const size_t ic_key_count = IC_COUNT(ic_keys);

/* The paper's values (arXiv 2307.06945, appendix, and the published scripts), and the shape of the
 * bundled adapter with what trains it well on a small machine. */
const ic_preset ic_presets[] = {
    {"paper", "k", "128", NULL},
    {"paper", "rate", "4", NULL},
    {"paper", "rank", "128", NULL},
    {"paper", "alpha", "32", NULL},
    {"paper", "lr", "1e-4", "5e-5"},
    {"paper", "batch", "256", NULL},
    {"paper", "warmup", "300", NULL},
    {"paper", "clip", "2", NULL},
    {"paper", "ae_weight", "0.5", "0"},
    {"paper", "lm_weight", "0.5", "0"},
    {"paper", "init", "normal", NULL},
    {"paper", "bos", "true", NULL},
    {"paper", "dropout", "0.05", NULL},
    {"demo", "k", "8", NULL},
    {"demo", "rate", "4", NULL},
    {"demo", "rank", "32", NULL},
    {"demo", "alpha", "32", NULL},
    {"demo", "targets", "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj", NULL},
    {"demo", "positions", "spread", NULL},
    {"demo", "slots", "proportional", NULL},
    {"demo", "lm_token", "true", NULL},
    {"demo", "dropout", "0", NULL},
    {"demo", "lr", "2e-3", "5e-4"},
    {"demo", "max_tokens", "256", "512"},
    {"demo", "adapter", "", "demo"},
};

const size_t ic_preset_count = IC_COUNT(ic_presets);
