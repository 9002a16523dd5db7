"""Checkpoints come back bit for bit, are written whole or not at all, and trust no file."""

import json
import math
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from celrec import checkpoint
from celrec.baselines.hashed import HashedEmbedding
from celrec.checkpoint import (
    load_arrays,
    load_frozen,
    load_model_state,
    load_optimizer_state,
    load_state,
    pack_state,
    save_arrays,
    save_frozen,
    save_state,
    unpack_state,
)
from celrec.core.embedding import ClusteredEmbedding, ClusteredEmbeddingBag
from celrec.core.memory import memory_report
from celrec.errors import CheckpointError
from celrec.models.biased_mf import BiasedMF
from celrec.models.gmf import GMF

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
]  # fmt: skip


def same_bits(found, expected):
    """Equality that tells -0.0 from 0.0, and takes NaN as equal to itself."""
    if isinstance(expected, torch.Tensor):
        return (
            isinstance(found, torch.Tensor)
            and (found.dtype, found.shape) == (expected.dtype, expected.shape)
            and found.contiguous().view(-1).view(torch.uint8).tolist()
            == expected.contiguous().view(-1).view(torch.uint8).tolist()
        )
    if type(found) is not type(expected):
        return False
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(
            same_bits(found[key], expected[key]) for key in expected
        )
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same_bits, found, expected))
    if isinstance(expected, float):
        both_nan = math.isnan(found) and math.isnan(expected)
        return both_nan or struct.pack("d", found) == struct.pack("d", expected)
    return found == expected


# --- round trips -----------------------------------------------------------------------------


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from([(), (0,), (3,), (2, 3), (0, 4)]))
    tensor = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if dtype.is_floating_point and draw(st.booleans()):
        tensor = tensor / 0  # NaN and infinity
    return tensor.t() if tensor.dim() == 2 and draw(st.booleans()) else tensor


states = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | tensors(),
    lambda part: (
        st.lists(part, max_size=3)
        | st.lists(part, max_size=3).map(tuple)
        | st.dictionaries(st.text("ab/'", max_size=3) | st.integers(-2, 2), part, max_size=3)
    ),
    max_leaves=8,
)


@given(states)
def test_any_nested_state_comes_back_bit_for_bit(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    save_state(path, state, kind="test")
    assert same_bits(load_state(path, kind="test"), state)


def test_arrays_and_manifest_come_back(tmp_path):
    shared = torch.arange(6.0)
    arrays = {"a": shared, "view": shared[2:4], "other": torch.zeros(2, 3).t()}
    manifest = {"x": [1, 0.1, None, {"y": "ü"}]}
    save_arrays(tmp_path / "file", arrays, manifest)
    found, found_manifest = load_arrays(tmp_path / "file")
    assert same_bits({name: found[name] for name in arrays}, arrays)
    assert found_manifest == manifest


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("first", "second"):
        state = {f"part {k}": torch.full((3,), float(k)) for k in range(20)}
        save_state(tmp_path / name, {"model": state, "epoch": 3}, kind="test")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_loaded_arrays_do_not_change_with_the_file(tmp_path):
    save_arrays(tmp_path / "file", {"a": torch.ones(10_000)}, {})
    arrays, _ = load_arrays(tmp_path / "file")
    (tmp_path / "file").write_bytes(bytes((tmp_path / "file").stat().st_size))
    assert bool((arrays["a"] == 1).all())


def test_what_a_checkpoint_cannot_hold_is_named():
    with pytest.raises(CheckpointError, match="a/b/0 is of type object"):
        pack_state({"a": {"b": [object()]}})
    with pytest.raises(CheckpointError, match=r"a has a key \(1, 2\)"):
        pack_state({"a": {(1, 2): 3}})


def every_optimizer():
    skipped = {"Optimizer", "SparseAdam"}  # the base class; SparseAdam has a test of its own
    return [
        getattr(torch.optim, name)
        for name in sorted(vars(torch.optim))
        if isinstance(getattr(torch.optim, name), type)
        and issubclass(getattr(torch.optim, name), torch.optim.Optimizer)
        and name not in skipped
    ]


def step(optimizer, parameter, seed):
    """One optimizer step on a gradient that depends on the seed alone."""
    noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))

    def closure():
        optimizer.zero_grad()
        loss = (parameter * noise).sum() + parameter.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("optimizer_class", every_optimizer(), ids=lambda c: c.__name__)
def test_every_optimizer_resumes_bit_for_bit(tmp_path, optimizer_class):
    options = {"lr": 0.01}
    if optimizer_class is torch.optim.SGD:
        options["momentum"] = 0.9
    parameter = nn.Parameter(torch.linspace(-1, 1, 12).view(4, 3))
    optimizer = optimizer_class([parameter], **options)
    for seed in range(3):
        step(optimizer, parameter, seed)
    saved = {"parameter": parameter, "optimizer": optimizer.state_dict()}
    save_state(tmp_path / "state", saved, kind="test")

    loaded = load_state(tmp_path / "state", kind="test")
    assert same_bits(loaded["optimizer"], saved["optimizer"])
    resumed = nn.Parameter(loaded["parameter"])
    resumed_optimizer = optimizer_class([resumed], **options)
    load_optimizer_state(resumed_optimizer, loaded["optimizer"])
    for seed in range(3, 6):
        step(optimizer, parameter, seed)
        step(resumed_optimizer, resumed, seed)
    assert torch.equal(resumed, parameter)
    assert same_bits(resumed_optimizer.state_dict(), optimizer.state_dict())


def test_sparse_adam_resumes_bit_for_bit(tmp_path):
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters())
    table(torch.tensor([1, 3])).sum().backward()
    optimizer.step()
    save_state(tmp_path / "state", optimizer.state_dict(), kind="test")
    again = torch.optim.SparseAdam(table.parameters())
    load_optimizer_state(again, load_state(tmp_path / "state", kind="test"))
    assert same_bits(again.state_dict(), optimizer.state_dict())


# --- written whole or not at all -------------------------------------------------------------


def test_a_failing_write_leaves_the_previous_checkpoint_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    save_arrays(path, {"a": torch.ones(3)}, {"version": 1})
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for owner, name in ((checkpoint.os, "fsync"), (checkpoint, "save_file"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(CheckpointError, match=r"No space left on device.*untouched"):
                save_arrays(path, {"a": torch.zeros(3)}, {"version": 2})
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    """A file size limit stands in for the disk: the write stops part of the way."""
    path = tmp_path / "file"
    save_arrays(path, {"a": torch.ones(3)}, {"version": 1})
    program = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from celrec.checkpoint import save_arrays\n"
        "from celrec.errors import CheckpointError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: save_arrays(Path(sys.argv[1]), {'a': torch.zeros(1_000_000)}, {})\n"
        "except CheckpointError as error: print(error)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )
    assert "could not be written" in found.stdout
    arrays, manifest = load_arrays(path)
    assert (arrays["a"].tolist(), manifest) == ([1, 1, 1], {"version": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_the_litter_of_a_kill_does_not_stop_the_next_write(tmp_path):
    (tmp_path / "file.partial").write_bytes(b"half")
    save_arrays(tmp_path / "file", {"a": torch.ones(3)}, {})
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="could not be written"):
        save_arrays(tmp_path / "nowhere" / "file", {}, {})


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    (tmp_path / "plain").touch()
    save_arrays(tmp_path / "file", {"a": torch.ones(3)}, {})
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- hostile and damaged files ---------------------------------------------------------------


def raw_file(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def with_manifest(text):
    return {"__metadata__": {"celrec-1": text}}


OURS = with_manifest("{}")
HOSTILE = {
    "empty": b"",
    "four bytes": b"\x10\0\0\0",
    "header longer than the file": struct.pack("<Q", 1 << 62) + b"{}",
    "header shorter than it is": struct.pack("<Q", 5) + raw_file(OURS)[8:],
    "no JSON": raw_file(b"not json"),
    "another JSON": raw_file(b"[1, 2]"),
    "deep JSON": raw_file(b'{"a":' * 50_000),
    "shape larger than the file": raw_file(OURS | {"a": entry([1 << 40], [0, 8])}, bytes(8)),
    "shape that overflows": raw_file(OURS | {"a": entry([1 << 62] * 2, [0, 8])}, bytes(8)),
    "negative shape": raw_file(OURS | {"a": entry([-2], [0, 8])}, bytes(8)),
    "offsets outside": raw_file(OURS | {"a": entry([2], [80, 88])}, bytes(8)),
    "offsets backwards": raw_file(OURS | {"a": entry([2], [8, 0])}, bytes(8)),
    "arrays that overlap": raw_file(
        OURS | {"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, bytes(12)
    ),
    "unknown type": raw_file(OURS | {"a": entry([2], [0, 8], "F99")}, bytes(8)),
    "bytes left over": raw_file(OURS | {"a": entry([2], [0, 8])}, bytes(9)),
    "pickle": pickle.dumps({"weight": [1.0, 2.0]}),
    "torch.save": b"PK\x03\x04" + bytes(200),
    "foreign safetensors": raw_file({"a": entry([2], [0, 8])}, bytes(8)),
    "manifest no JSON": raw_file(with_manifest("{")),
    "manifest no object": raw_file(with_manifest("[]")),
    "manifest too deep": raw_file(with_manifest("[" * 200_000)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused(tmp_path, name):
    (tmp_path / "file").write_bytes(HOSTILE[name])
    with pytest.raises(CheckpointError, match=str(tmp_path / "file")):
        load_arrays(tmp_path / "file")


def test_an_honest_file_made_the_same_way_is_read(tmp_path):
    honest = raw_file(OURS | {"a": entry([2], [0, 8])}, bytes(8))
    (tmp_path / "file").write_bytes(honest)
    arrays, manifest = load_arrays(tmp_path / "file")
    assert (arrays["a"].tolist(), manifest) == ([0, 0], {})


def test_file_cut_at_every_tenth_is_refused(tmp_path):
    path = tmp_path / "file"
    save_state(path, {"model": nn.Linear(30, 30).state_dict()}, kind="test")
    whole = path.read_bytes()
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(CheckpointError, match="damaged"):
            load_state(path, kind="test")


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_arrays(tmp_path / "file")
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_arrays(tmp_path)


def test_file_of_another_kind_is_refused(tmp_path):
    save_state(tmp_path / "file", {}, kind="best")
    with pytest.raises(CheckpointError, match="holds 'best', wanted 'training'"):
        load_state(tmp_path / "file", kind="training")
    with pytest.raises(CheckpointError, match="holds 'best', wanted 'frozen'"):
        load_frozen(tmp_path / "file")


@pytest.mark.parametrize(
    "structure",
    [
        {"tensor": "missing"}, {"tensor": ["a"]}, {"odd": 1}, {}, {"mapping": 3},
        {"mapping": [[1]]}, {"mapping": [[[], 1]]}, {"list": None}, {"tuple": [{"a": 1, "b": 2}]},
    ],
)  # fmt: skip
def test_damaged_structure_is_refused(tmp_path, structure):
    save_arrays(tmp_path / "file", {"a": torch.ones(1)}, {"kind": "test", "state": structure})
    with pytest.raises(CheckpointError, match="damaged manifest"):
        load_state(tmp_path / "file", kind="test")


def test_structure_deeper_than_the_stack_is_refused():
    structure = 0
    for _ in range(100_000):
        structure = {"list": [structure]}
    with pytest.raises(RecursionError):
        unpack_state({}, structure)


# --- models and optimizers -------------------------------------------------------------------


def small_model(num_users=6, width=4, max_clusters=3):
    users = ClusteredEmbedding(num_users, width, max_clusters=max_clusters)
    return BiasedMF(users, nn.Embedding(5, width))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (small_model(num_users=7), r"user_embedding.codes is uint8 \(7, 1\) .*, uint8 \(6, 1\)"),
        (small_model(max_clusters=4), r"user_embedding.weight is float32 \(4, 4\)"),
        (GMF(nn.Embedding(6, 4), nn.Embedding(5, 4)), "offset is missing"),
        (nn.Linear(2, 2), "and .* more"),
        (small_model().double(), "is float64"),
    ],
)
def test_state_of_another_model_is_refused_and_named(other, message):
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_model_state(model, other.state_dict())
    assert same_bits(dict(model.state_dict()), before)


def test_codes_that_point_at_sleeping_rows_are_refused():
    state = small_model().state_dict()
    state["user_embedding.codes"] = torch.full((6, 1), 200, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="contradicts itself"):
        load_model_state(small_model(), state)


def adam_state(**changes):
    parameter = nn.Parameter(torch.ones(1000, 32))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    parameter.sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][0] |= changes
    return optimizer, state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exp_avg": torch.zeros(1, 1)}, r"its exp_avg is float32 \(1, 1\)"),
        ({"exp_avg_sq": torch.zeros(())}, r"its exp_avg_sq is float32 \(\)"),
        ({"step": torch.zeros(2)}, r"its step is float32 \(2,\)"),
    ],
)
def test_optimizer_state_that_would_crash_a_fused_kernel_is_refused(changes, message):
    optimizer, state = adam_state(**changes)
    with pytest.raises(CheckpointError, match=message):
        load_optimizer_state(optimizer, state)


def test_optimizer_state_of_other_parameters_is_refused():
    optimizer, state = adam_state()
    for damaged in ({}, {"state": {9: state["state"][0]}, "param_groups": []}, {"state": 3}):
        with pytest.raises(CheckpointError, match="does not fit this AdamW"):
            load_optimizer_state(optimizer, damaged)
    slow = torch.optim.Adam([nn.Parameter(torch.ones(4, 3))])
    with pytest.raises(CheckpointError, match="does not fit this Adam"):
        load_optimizer_state(slow, state)


# --- frozen models ---------------------------------------------------------------------------


def grown(table, seed=0):
    """Wake some rows, not in order, and give every entity one of them."""
    generator = torch.Generator().manual_seed(seed)
    live = torch.randperm(table.max_clusters, generator=generator)[: table.max_clusters // 2 + 1]
    table.born_at.fill_(-1)
    table.born_at[live] = torch.arange(len(live))
    chosen = live[torch.randint(0, len(live), (table.num_embeddings,), generator=generator)]
    table.cluster_of.copy_(chosen.to(table.cluster_of.dtype))
    return table


TABLES = {
    "clustered": lambda: grown(ClusteredEmbedding(50, 4, max_clusters=9, padding_idx=3)),
    "clustered, two bytes": lambda: grown(ClusteredEmbedding(900, 4, max_clusters=700)),
    "one cluster": lambda: ClusteredEmbedding(50, 4, max_clusters=9),
    "bag": lambda: grown(ClusteredEmbeddingBag(50, 4, max_clusters=9, mode="sum", padding_idx=-1)),
    "full": lambda: nn.Embedding(50, 4, padding_idx=2),
    "full bag": lambda: nn.EmbeddingBag(50, 4, mode="max"),
    "hashed": lambda: HashedEmbedding(50, 4, 7, padding_idx=1, seed=2),
    "max_norm": lambda: nn.Embedding(50, 4, max_norm=0.5),
    "half": lambda: grown(ClusteredEmbedding(50, 4, max_clusters=9, dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("kind", TABLES)
def test_frozen_table_looks_up_identically_in_the_bytes_that_are_reported(tmp_path, kind):
    model = nn.ModuleDict({"table": TABLES[kind]()}).eval()
    path = tmp_path / "frozen"
    save_frozen(model, path)
    arrays, _ = load_arrays(path)
    num_bytes = sum(array.numel() * array.element_size() for array in arrays.values())
    assert num_bytes == memory_report(model).total_bytes
    header = struct.unpack("<Q", path.read_bytes()[:8])[0]
    assert path.stat().st_size == num_bytes + header + 8

    table = load_frozen(path).tables["table"]
    ids = torch.arange(50).view(10, 5)
    with torch.no_grad():
        assert same_bits(table(ids), model["table"](ids))
    assert not any(parameter.requires_grad for parameter in table.parameters())


def test_frozen_model_predicts_identically_in_a_model_that_was_never_trained(tmp_path):
    def build():
        return BiasedMF(ClusteredEmbedding(50, 4, max_clusters=9), HashedEmbedding(40, 4, 7))

    trained = build()
    grown(trained.user_embedding)
    trained.set_offset(3.5)
    save_frozen(trained, tmp_path / "frozen")
    served = load_frozen(tmp_path / "frozen").install(build())
    user, item = torch.arange(50), torch.arange(50) % 40
    assert same_bits(served(user, item), trained(user, item))
    assert not served.training
    assert served.user_embedding.max_clusters < 9


class TwoTowers(nn.Module):
    """Uses one table under two names."""

    def __init__(self, table):
        super().__init__()
        self.liked = table
        self.candidate = table
        self.scale = nn.Parameter(torch.full((), 2.0))

    def forward(self, liked, candidate):
        return self.scale * (self.liked(liked) * self.candidate(candidate)).sum(-1)


def test_table_used_under_two_names_is_frozen_once(tmp_path):
    model = TwoTowers(grown(ClusteredEmbedding(50, 4, max_clusters=9)))
    save_frozen(model, tmp_path / "frozen")
    arrays, _ = load_arrays(tmp_path / "frozen")
    assert sorted(arrays) == ["others/scale", "tables/liked/codes", "tables/liked/rows"]
    served = load_frozen(tmp_path / "frozen").install(
        TwoTowers(ClusteredEmbedding(50, 4, max_clusters=9))
    )
    assert served.liked is served.candidate
    assert same_bits(served(torch.arange(50), torch.arange(50)), model(*[torch.arange(50)] * 2))


def test_frozen_file_of_another_model_is_refused(tmp_path):
    save_frozen(TwoTowers(nn.Embedding(5, 2)), tmp_path / "frozen")
    frozen = load_frozen(tmp_path / "frozen")
    with pytest.raises(CheckpointError, match=r"has tables \['0'\].*\['liked'\]"):
        frozen.install(nn.Sequential(nn.Embedding(5, 2)))

    class Larger(TwoTowers):
        def __init__(self, table):
            super().__init__(table)
            self.bias = nn.Parameter(torch.zeros(()))

    with pytest.raises(CheckpointError, match="bias is missing"):
        frozen.install(Larger(nn.Embedding(5, 2)))


class OtherTable(nn.Module):
    def memory(self):
        return memory_report(nn.Embedding(2, 2)).tables[0]


def test_table_of_unknown_kind_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="table '0' is a OtherTable"):
        save_frozen(nn.Sequential(OtherTable()), tmp_path / "frozen")


@pytest.mark.parametrize(
    "options",
    [
        {"class": "Unknown"}, {}, 3, {"class": "Embedding", "odd": 1},
        {"class": "HashedEmbedding", "num_embeddings": 1 << 40, "seed": "x"},
        {"class": "ClusteredEmbedding"},
    ],
)  # fmt: skip
def test_frozen_file_with_damaged_options_is_refused(tmp_path, options):
    manifest = {"kind": "frozen", "tables": {"t": options}}
    save_arrays(tmp_path / "frozen", {"tables/t/rows": torch.ones(3, 2)}, manifest)
    with pytest.raises(CheckpointError, match="damaged table"):
        load_frozen(tmp_path / "frozen")


def test_frozen_codes_outside_the_rows_are_refused(tmp_path):
    arrays = {
        "tables/t/rows": torch.ones(3, 2),
        "tables/t/codes": torch.full((5, 1), 9, dtype=torch.uint8),
    }
    manifest = {"kind": "frozen", "tables": {"t": {"class": "ClusteredEmbedding"}}}
    save_arrays(tmp_path / "frozen", arrays, manifest)
    with pytest.raises(CheckpointError, match="cluster 9"):
        load_frozen(tmp_path / "frozen")
