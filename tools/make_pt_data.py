#!/usr/bin/env python3
"""Makes tests/data/*.pt with torch: files that are read, and files that must be refused.
Developer only (needs torch); the tests need the files alone."""
import collections
import os
import pickle
import sys
import zipfile

import torch

folder = sys.argv[1] if len(sys.argv) > 1 else "tests/data"


def path(name):
    return os.path.join(folder, name)


def rezip(source, target, method=zipfile.ZIP_STORED, **changed):
    """Copies an archive with some entries (named by their last part, '.' as '_') replaced."""
    with zipfile.ZipFile(path(source)) as old, zipfile.ZipFile(path(target), "w", method) as new:
        for info in old.infolist():
            data = old.read(info)
            last = info.filename.split("/")[-1].replace(".", "_")
            new.writestr(zipfile.ZipInfo(info.filename), changed.get(last, data), method)


def make_good():
    base = torch.arange(24, dtype=torch.float32)
    values = collections.OrderedDict()
    values["f32"] = base[:6].clone().reshape(2, 3)
    values["f16"] = torch.tensor([1.5, -2.0], dtype=torch.float16)
    values["bf16"] = torch.tensor([[3.0], [-0.5]], dtype=torch.bfloat16)
    values["f64"] = torch.tensor([1e-3], dtype=torch.float64)
    values["i64"] = torch.tensor([-(1 << 40), 7])
    values["i32"] = torch.tensor([-5], dtype=torch.int32)
    values["i8"] = torch.tensor([-128, 127], dtype=torch.int8)
    values["u8"] = torch.tensor([255], dtype=torch.uint8)
    values["flag"] = torch.tensor([True, False])
    values["scalar"] = torch.tensor(2.5)
    values["empty"] = torch.zeros(0, 3)
    values["shared"] = base.reshape(4, 6)
    values["rows"] = base.reshape(4, 6)[1:3]  # a view: the same storage, an offset
    values["parameter"] = torch.nn.Parameter(torch.ones(2))
    values["nested"] = {"list": [torch.zeros(1), {"deep": torch.full((1,), 9.0)}], 3: torch.ones(1),
                        "tuple": (torch.ones(1) * 4, None)}
    values["leaves"] = {"epoch": 3, "big": 1 << 40, "negative": -70000, "rate": 0.5, "name": "x",
                        "yes": True, "no": False, "none": None, "words": ["a", "b"], ("t",): 1}
    torch.save(values, path("good.pt"))

    torch.manual_seed(1)
    torch.save(torch.nn.Linear(3, 2).state_dict(), path("state_dict.pt"))
    torch.save(torch.tensor([1.0, 2.0]), path("single.pt"))
    torch.save([torch.zeros(1), {str(i): torch.full((1,), float(i)) for i in range(40)}],
               path("many.pt"))


class Attack:
    def __reduce__(self):
        return os.system, ("echo pwned",)


def make_bad():
    torch.save({"weight": torch.ones(2), "x": Attack()}, path("bad_system.pt"))
    torch.save({"w": torch.arange(6).reshape(2, 3).t()}, path("bad_transposed.pt"))
    torch.save({"w": torch.ones(2, 1, 1, 1, 2)}, path("bad_rank5.pt"))
    torch.save({"w": torch.ones(2, dtype=torch.int16)}, path("bad_i16.pt"))
    torch.save({"w": torch.ones(2)}, path("bad_legacy.pt"), _use_new_zipfile_serialization=False)
    rezip("single.pt", "bad_deflated.pt", zipfile.ZIP_DEFLATED)
    rezip("single.pt", "bad_byteorder.pt", byteorder=b"big")
    rezip("single.pt", "bad_nodata.pt", data_pkl=b"")
    rezip("single.pt", "bad_protocol.pt", data_pkl=pickle.dumps({}, 4))
    # A list that contains itself, and pairs of pairs, sixty deep, of the same two values.
    rezip("single.pt", "bad_cycle.pt", data_pkl=b"\x80\x02]q\x00h\x00a.")
    bomb = b"\x80\x02]q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60)) + b"."
    rezip("single.pt", "bad_bomb.pt", data_pkl=bomb)
    with zipfile.ZipFile(path("single.pt")) as z:
        name = next(n for n in z.namelist() if n.endswith("data.pkl"))
        single = z.read(name)
    assert b"K\x02" in single
    rezip("single.pt", "bad_shape.pt", data_pkl=single.replace(b"K\x02\x85", b"K\x03\x85", 1))
    rezip("single.pt", "bad_storage.pt", data_pkl=single.replace(b"K\x02", b"K\x09"))
    rezip("single.pt", "bad_key.pt", data_pkl=single.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x007"))


os.makedirs(folder, exist_ok=True)
make_good()
make_bad()
