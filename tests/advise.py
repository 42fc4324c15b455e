#!/usr/bin/env python3
"""Copies an adapter with other metadata: advise.py IN OUT KEY=VALUE..."""
import json
import struct
import sys


def advise(source: str, target: str, **values) -> None:
    with open(source, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    header["__metadata__"].update(values)
    text = json.dumps(header).encode()
    with open(target, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


if __name__ == "__main__":
    advise(sys.argv[1], sys.argv[2], **dict(pair.split("=") for pair in sys.argv[3:]))
