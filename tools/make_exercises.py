#!/usr/bin/env python3
"""Makes exercises out of text, for training a small base and its adapter (docs/training-the-demo.md).

    tools/make_exercises.py OUT 'texts/prose-*.jsonl.zst' [--questions instruct.jsonl.zst] [--megabytes 36] [--rows 20000] [--seed 1]

OUT gets
  replaced.jsonl  {"text"}: documents of which a tenth to seven tenths of the words are replaced by others, so that what stands
                  in the slots cannot be guessed, nor known from earlier reading
  blanks.jsonl    {"context", "prompt", "response"}: a sentence of the context without one of its names or words, which is the answer;
                  where that stands elsewhere in the context too, the sentence itself is often cut out of it
  passages.jsonl  {"context", "prompt", "response"}: some words of the context, and what follows them there
  shuffled.jsonl  {"context", "prompt", "response"}: all of the context, in pieces of 5 to 16 words in another order. Behind the first words
                  of a piece the rest can only be found by them: nearly every word of a row is one to look up
  facts.jsonl     {"context", "prompt", "response"}: the profile of a country, put together out of the fields of several, and one of
                  them asked for, or all in another order: the answer cannot be known, only looked up. Fields, sentences and
                  questions are those of the rows of task "fact" in --questions
"""
import argparse
import collections
import glob
import json
import os
import random
import re
import subprocess

WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")
SENTENCE = re.compile(r"(?<=[.!?] )[A-Z\"'][^.!?\n]{20,240}[.!?](?= )")
NAME = re.compile(r"(?<= )[A-Z][a-z]+(?: [A-Z][a-z]+){0,2}|(?<= )\d[\d,]*")
PLAIN = re.compile(r"(?<= )[a-z]{4,}")


def unpack(path):
    return subprocess.run(["zstdcat", path], capture_output=True, check=True).stdout.splitlines()


def documents(patterns, size):
    """Texts of the files in random order, up to `size` characters of each pattern's files."""
    texts = []
    for pattern in patterns:
        files = sorted(glob.glob(pattern))
        for path in files:
            lines = unpack(path)
            random.shuffle(lines)
            left = size / len(patterns) / len(files)
            for line in lines:
                if left <= 0:
                    break
                texts.append(json.loads(line)["text"])
                left -= len(texts[-1])
    random.shuffle(texts)
    return texts


def replaced(texts):
    counts = collections.Counter(word for text in texts for word in WORD.findall(text))
    kinds, often = [word for word, n in counts.items() if n > 1], list(counts.elements())
    for text in texts:
        share = random.choice((0.1, 0.2, 0.4, 0.7))

        def other(match):
            word = match.group()
            if random.random() >= share:
                return word
            new = random.choice(kinds if random.random() < 0.6 else often)
            return new.capitalize() if word[0].isupper() and random.random() < 0.7 else new
        yield {"text": WORD.sub(other, text)}


def excerpt(texts):
    """200 to 2,000 characters of a text, from the start of a word to the end of one."""
    text, length = random.choice(texts), random.choice((400, 800, 1300, 2000))
    at = random.randrange(max(1, len(text) - length))
    return text[at:at + length].partition(" ")[2].rpartition(" ")[0].strip()


def blank(text):
    sentences = list(SENTENCE.finditer(text))
    if not sentences:
        return None
    sentence = random.choice(sentences)
    holes = list((NAME if random.random() < 0.7 else PLAIN).finditer(sentence.group()))
    if not holes:
        return None
    hole = random.choice(holes)
    outside = text[:sentence.start()] + text[sentence.end() + 1:]
    context = outside if hole.group() in outside and random.random() < 0.6 else text
    asked = sentence.group()[:hole.start()] + "____" + sentence.group()[hole.end():]
    return {"context": context, "prompt": "Fill in the blank: " + asked, "response": hole.group()}


def passage(text):
    words = list(re.finditer(r"\S+", text))
    cue, length = random.randrange(4, 9), random.randrange(8, 26)
    if len(words) < cue + length:
        return None
    i = random.randrange(len(words) - cue - length + 1)
    middle = words[i + cue - 1].end()
    return {"context": text, "prompt": "Continue: " + text[words[i].start():middle],
            "response": text[middle:words[i + cue + length - 1].end()].strip()}


def shuffled(text):
    words, pieces = text.split(), []
    while words:
        n = random.randrange(5, 17)
        pieces.append(" ".join(words[:n]))
        del words[:n]
    random.shuffle(pieces)
    return {"context": text, "prompt": "In another order:", "response": " | ".join(pieces)}


def often(counts):
    """{field: the texts that are a tenth of its texts or more}"""
    return {field: [text for text, n in c.items() if n >= max(10, c.total() / 10)] for field, c in counts.items()}


def read_profiles(rows):
    """{country: {field: value}}, {field: sentences}, {field: questions}, with {C} and {V} for country and value."""
    values, lines = collections.defaultdict(dict), collections.defaultdict(list)
    for row in rows:
        head, gap, body = row["context"].partition("\n\n")
        pairs = [line.split(": ", 1) for line in body.split("\n")]
        if gap and len(head) < 50 and all(len(pair) == 2 and len(pair[0]) < 30 for pair in pairs):
            values[head].update(pairs)
        else:
            lines[row["source"]] += re.split(r"(?<=\.) (?=[A-Z])", row["context"])
    sentences, questions = collections.defaultdict(collections.Counter), collections.defaultdict(collections.Counter)
    for row in rows:
        names = [name for name in values if name in row["prompt"] or row["context"].startswith(name + "\n")]
        country = max(names, key=len, default=None)  # Nigeria, not Niger
        for field, value in values.get(country, {}).items():
            if row["response"] == value:
                questions[field][row["prompt"].replace(country, "{C}")] += 1
            for line in lines[row["source"]] if len(value) > 3 else ():
                if value in line:
                    sentences[field][line.replace(value, "{V}").replace(country, "{C}")] += 1
    return values, often(sentences), often(questions)


def facts(rows, count):
    values, sentences, questions = read_profiles([row for row in rows if row["task"] == "fact"])
    fields = [field for field in questions if questions[field]]
    named = {field: [v[field] for v in values.values() if field in v] for field in fields}
    for _ in range(count):
        country, own = random.choice(list(values.items()))
        strange = random.choice((0, 0.5, 1))
        chosen = random.sample(fields, random.randrange(2, min(len(fields), 22)))
        profile = {f: own[f] if f in own and random.random() >= strange else random.choice(named[f]) for f in chosen}
        size = 0
        for field in chosen:  # as much as is read at once
            size += len(profile[field]) + 24
            if size > 1400:
                profile.pop(field)
        asked = random.choice(list(profile))
        prompt, answer = random.choice(questions[asked]).replace("{C}", country), profile[asked]
        if random.random() < 0.3:
            order = random.sample(list(profile), len(profile))
            prompt, answer = f"Tell of {country}: " + "; ".join(order), " | ".join(f"{f}: {profile[f]}" for f in order)
        if random.random() < 0.5 or not all(sentences.get(f) for f in profile):
            context = country + "\n\n" + "\n".join(f"{field}: {value}" for field, value in profile.items())
        else:
            context = f"This is about {country}. " + " ".join(
                random.choice(sentences[f]).replace("{C}", country).replace("{V}", v) for f, v in profile.items())
        yield {"context": context, "prompt": prompt, "response": answer}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", help="folder")
    p.add_argument("texts", nargs="+", help="patterns of .jsonl.zst files with \"text\"")
    p.add_argument("--questions", help=".jsonl.zst with \"task\", for facts.jsonl")
    p.add_argument("--megabytes", type=float, default=36, help="of text to read")
    p.add_argument("--rows", type=int, default=20000, help="of each kind of question")
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    random.seed(a.seed)
    texts = documents(a.texts, a.megabytes * 1e6)
    os.makedirs(a.out, exist_ok=True)

    def write(name, rows):
        with open(os.path.join(a.out, name), "w") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")

    def exercises(make):
        made = 0
        while made < a.rows:
            row = make(excerpt(texts))
            if row:
                made += 1
                yield row

    write("replaced.jsonl", replaced(texts))
    write("blanks.jsonl", exercises(blank))
    write("passages.jsonl", exercises(passage))
    write("shuffled.jsonl", exercises(shuffled))
    if a.questions:
        write("facts.jsonl", facts(list(map(json.loads, unpack(a.questions))), a.rows))


if __name__ == "__main__":
    main()
