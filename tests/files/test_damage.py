"""Weights from outside: damage, other tools' archives and pickles that would run end in one line with the fix; nothing is believed."""

import dataclasses
import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile

import pytest
import torch
from checkpoint_files import SMALL, shards_of, whole_weights, write_directory
from ranks import run_ranks
from safetensors.torch import save_file

from mindspeed_mm.checkpoint import torch_dist
from mindspeed_mm.checkpoint.shares import Shares
from mindspeed_mm.checkpoint.store import CheckpointStore
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import integrity, layout, safetensors_file, torch_state
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.weights import load_denoiser, merge_checkpoint, sources, split_checkpoint
from mindspeed_mm.weights.inspect import describe

NAMES = ("w", "b", "n.deep")


class Trap:
    """Pickles to a call."""

    def __reduce__(self):
        return os.system, ("touch trapped",)


def three_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(40, 10, generator=generator) for name in NAMES}


@pytest.fixture
def flat(tmp_path):
    torch.save(three_tensors(), tmp_path / "w.pt")
    return tmp_path / "w.pt"


def values(path) -> dict[str, torch.Tensor]:
    """What a reader of weights gets."""
    weights = sources.open_checkpoint(path).weights(dim_of=lambda name: None)
    return {name: weights.part(name) for name in weights}


def packed_again(path, edit=lambda entries: entries, method=zipfile.ZIP_STORED) -> None:
    """The archive as another program packs it. edit: of (name, bytes) pairs."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in edit(entries):
            archive.writestr(name, data)


# ------------------------------------------------------------------------------------------------------------ .pt files


def test_damage_anywhere_in_a_torch_file_is_seen_or_changes_nothing(flat):
    """Every region of the file, byte by byte: no value ever differs, and nothing but CheckpointError comes out."""
    whole, wanted, chance = flat.read_bytes(), three_tensors(), random.Random(0)
    refused = 0
    for trial in range(150):
        data = bytearray(whole)
        kind = trial % 5
        at = chance.randrange(len(data))
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at : at + 16] = chance.randbytes(16)
        elif kind == 2:
            del data[at : at + chance.randrange(1, 200)]
        elif kind == 3:
            data[at:at] = chance.randbytes(chance.randrange(1, 200))
        else:
            other = chance.randrange(len(data))
            data[at : at + 64] = data[other : other + 64]
        flat.write_bytes(data)
        try:
            found = values(flat)
        except CheckpointError as error:
            refused += 1
            assert "w.pt" in str(error) and "\n" not in str(error) and len(str(error)) < 700
        else:
            assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert refused > 100  # of the others, most changed what is no value: times, padding


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_byte_of_a_value_names_the_tensor(flat, name):
    data = flat.read_bytes()
    at = data.index(three_tensors()[name].numpy().tobytes())
    flat.write_bytes(data[: at + 5] + bytes([data[at + 5] ^ 1]) + data[at + 6 :])
    with pytest.raises(CheckpointError, match=f"w.pt: {name} is damaged, .* checksum"):
        values(flat)
    with pytest.raises(CheckpointError, match=f"w.pt: {name} is damaged, .* checksum"):
        torch_state.load(flat)


def test_a_file_that_was_compressed_again_is_refused_and_one_that_was_stored_again_is_read(flat):
    packed_again(flat, method=zipfile.ZIP_DEFLATED)
    with pytest.raises(
        CheckpointError, match=r"w.pt: its record w/data.pkl is compressed.*without compression \(unzip"
    ):
        values(flat)
    packed_again(flat)  # as the message says
    assert all(torch.equal(value, three_tensors()[name]) for name, value in values(flat).items())


def twice(entries):
    return [*entries, next(entry for entry in entries if entry[0] == "w/data/1")]


def without_a_storage(entries):
    return [entry for entry in entries if entry[0] != "w/data/1"]


def shorter(entries):
    return [(name, data[:-4] if name == "w/data/1" else data) for name, data in entries]


def big_endian(entries):
    return [(name, b"big" if name == "w/byteorder" else data) for name, data in entries]


def torchscript(entries):
    return [*entries, ("w/constants.pkl", b"")]


def other_archive(entries):
    return [("readme.txt", b"hello")]


def asks_for_memory(entries):
    pickled = b"\x80\x02}r\xff\xff\xff\x7f."  # a dict, kept as number 2147483647
    return [(name, pickled if name == "w/data.pkl" else data) for name, data in entries]


def beyond_its_storage(entries):
    """A tensor of 401 values in 400."""
    return [(name, data.replace(b"K(K\n", b"K)K\n", 1) if name == "w/data.pkl" else data) for name, data in entries]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (twice, "there are two records w/data/1"),
        (without_a_storage, "storage '1' is not in the file"),
        (shorter, "storage '1' has 1596 bytes, not 400 x 4"),
        (big_endian, "only little-endian"),
        (torchscript, "a TorchScript program"),
        (other_archive, "not one that torch.save wrote"),
        (asks_for_memory, "LONG_BINPUT 2147483647"),
        (beyond_its_storage, r"w \[41, 10\] torch.float32 .* does not lie in its 400 values"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_are_not_what_they_seem(flat, edit, message):
    packed_again(flat, edit)
    with pytest.raises(CheckpointError, match=message):
        values(flat)


def test_records_that_overlap_are_refused(flat):
    """The table of contents says that two storages are one record."""
    data = bytearray(flat.read_bytes())
    with zipfile.ZipFile(flat) as archive:
        first, second = (archive.getinfo(f"w/data/{key}") for key in (0, 1))
        table = archive.start_dir
    entry = data.rindex(b"w/data/1") - 46
    assert entry > table
    data[entry + 42 : entry + 46] = struct.pack("<I", first.header_offset)
    data[entry + 16 : entry + 20] = struct.pack("<I", first.CRC)
    assert second.file_size == first.file_size
    flat.write_bytes(data)
    with pytest.raises(CheckpointError, match="w.pt: cannot be read, .*record w/data/[01] begins at byte"):
        values(flat)


def test_a_file_saved_without_checksums_is_refused(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(three_tensors(), tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.raises(CheckpointError, match="saved without checksums"):
        values(tmp_path / "w.pt")


def test_what_torch_saves_is_read_as_torch_reads_it(tmp_path):
    """Parameters, views, shared storages, empty tensors, every dtype, flags."""
    base = torch.arange(24.0).reshape(4, 6)
    state = {name: torch.ones(3).to(dtype) for name, dtype in safetensors_file.DTYPES.items()}
    state |= {"parameter": torch.nn.Parameter(base), "view": base[1:3, ::2], "transposed": base.T, "scalar": base[1, 1]}
    state |= {"empty": torch.empty(0, 3), "nested": [1, "a", (None, {"x": base})], "bytes": b"\xff\x00", "set": {1, 2}}
    torch.save(state, tmp_path / "s.pt")
    found = torch_state.load(tmp_path / "s.pt")
    theirs = torch.load(tmp_path / "s.pt", weights_only=True)
    assert found.keys() == theirs.keys()
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
            assert found[name].stride() == value.stride()
    assert torch.equal(found["nested"][2][1]["x"], base)
    assert (found["bytes"], found["set"]) == (b"\xff\x00", {1, 2})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_values_that_are_not_finite_name_the_tensor(tmp_path, bad, suffix):
    weights = whole_weights()
    weights["norm_final.weight"][3] = bad
    path = tmp_path / f"model.{suffix}"
    torch.save(weights, path) if suffix == "pt" else save_file(weights, path)
    network = build_denoiser(SMALL, ParallelContext.current(), seed=1)
    for read in (
        lambda: load_denoiser(network, path),
        lambda: merge_checkpoint(path, tmp_path / "out"),
        lambda: split_checkpoint(path, tmp_path / "out", 2),
        lambda: list(describe(path)),
    ):
        with pytest.raises(CheckpointError, match=f"model.{suffix}: norm_final.weight has values that are not finite"):
            read()
    assert not (tmp_path / "out").exists()


def test_a_value_that_fp16_cannot_hold_is_no_infinity(tmp_path):
    weights = whole_weights()
    weights["norm_final.weight"][3] = 1e5
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(
        CheckpointError, match="norm_final.weight has values beyond 65504, the largest of fp16; use bf16"
    ):
        merge_checkpoint(tmp_path / "model.pt", tmp_path / "out", dtype="fp16")
    network = build_denoiser(SMALL, ParallelContext.current(), seed=1, dtype="fp16")
    with pytest.raises(CheckpointError, match="norm_final.weight has values beyond 65504"):
        load_denoiser(network, tmp_path / "model.pt")


def test_quantized_weights_are_not_taken_for_weights(tmp_path):
    weights = {**whole_weights(), "norm_final.weight": torch.ones(64, dtype=torch.int8)}
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="norm_final.weight is torch.int8, quantized"):
        load_denoiser(build_denoiser(SMALL, ParallelContext.current(), seed=1), tmp_path / "model.pt")


def test_one_parameter_under_two_names_is_refused(tmp_path):
    weights = whole_weights()
    name = "transformer_blocks.0.0.attn1.to_q.weight"
    weights[name.replace("to_q", "proj_q")] = weights[name]
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(
        CheckpointError, match="attn1.proj_q.weight and .*attn1.to_q.weight, two names of one parameter"
    ):
        sources.open_checkpoint(tmp_path / "model.pt")


# ---------------------------------------------------------------------------------------------------------- safetensors


def write_safetensors(path, header: str, nbytes: int = 16) -> None:
    text = header.encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(nbytes))


def entry(begin, end, shape="[2]", dtype="F32"):
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (f'{{"a":{entry(0, 8)},"b":{entry(4, 12)}}}', "b begins at byte 4, a ends at 8"),
        (f'{{"a":{entry(0, 8)},"b":{entry(0, 8)}}}', "b begins at byte 0, a ends at 8"),
        (f'{{"a":{entry(8, 16)}}}', "a begins at byte 8, the header ends at 0"),
        (f'{{"a":{entry(0, 8)}}}', "its tensors end at byte 8, there are 16"),
        (f'{{"a":{entry(0, 8)},"a":{entry(8, 16)}}}', "names a twice"),
        (f'{{"a":{entry(0, 8)},"b":{entry(8, 24)}}}', "does not fill its bytes|truncated"),
        (f'{{"a":{entry(0, 8, "[3]")},"b":{entry(8, 16)}}}', r"a \[3\] F32 does not fill"),
        (f'{{"a":{entry(0, 8, "[true, 2]")},"b":{entry(8, 16)}}}', "does not fill"),
        (f'{{"a":{entry(0, 8, "[-1, -2]")},"b":{entry(8, 16)}}}', "does not fill"),
        (f'{{"a":{entry(0, 8, dtype="F4")},"b":{entry(8, 16)}}}', "a is of dtype 'F4'; readable are"),
        ('{"a":[1]}', "has no dtype, shape and data_offsets"),
        ('{"a":{"dtype":{},"shape":[2],"data_offsets":[0,16]}}', "is of dtype {}"),
        ("[" * 100_000, "header is not JSON"),
        ("[]", "header is not JSON"),
    ],
)
def test_a_header_of_safetensors_that_lies(tmp_path, header, message):
    write_safetensors(tmp_path / "w.safetensors", header)
    with pytest.raises(CheckpointError, match=f"w.safetensors: .*({message})"):
        safetensors_file.read(tmp_path / "w.safetensors")


def test_files_of_one_index_belong_together(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "1.safetensors")
    save_file({"a": torch.zeros(2), "b": torch.ones(2)}, tmp_path / "2.safetensors")
    index = tmp_path / "m.safetensors.index.json"
    for table, message in (
        ({"a": "1.safetensors", "b": "2.safetensors"}, "a is in 2.safetensors and in another"),
        ({"b": "2.safetensors"}, "does not say that a is in 2.safetensors"),
    ):
        index.write_text(json.dumps({"weight_map": table}))
        with pytest.raises(CheckpointError, match=message):
            safetensors_file.read_index(index)
    index.write_text('{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}')
    with pytest.raises(CheckpointError, match="names a twice"):
        safetensors_file.read_index(index)


# --------------------------------------------------------------------------------------------------- a run's checkpoints


@pytest.fixture
def recorded(tmp_path):
    """A run's directory with the record of checksums that the trainer writes."""
    run = write_directory(tmp_path / "run", shards_of(whole_weights(), 2), shards_of(whole_weights(1), 2))
    directory = run / "iter_0000007"
    integrity.write(integrity.measure(sorted(directory.glob("mp_rank_*/*.pt")), directory), directory)
    return run


def change_a_value(shard) -> None:
    """So that the archive's own checksums are right, and only the record's is not."""
    state = torch.load(shard, weights_only=False)
    state["model"]["proj_out.bias"][0] += 1
    torch.save(state, shard)


def flip_a_byte(shard) -> None:
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


@pytest.mark.parametrize("damage", [change_a_value, flip_a_byte])
def test_what_a_run_recorded_is_compared_by_whatever_reads_it(recorded, tmp_path, damage):
    directory = recorded / "iter_0000007"
    shard = directory / "mp_rank_01" / layout.MODEL_FILE
    network = build_denoiser(SMALL, ParallelContext.current(), seed=1)
    readers = [
        lambda: load_denoiser(network, recorded),
        lambda: load_denoiser(network, recorded, ema=True),
        lambda: load_denoiser(network, directory),
        lambda: merge_checkpoint(recorded, tmp_path / "out"),
        lambda: merge_checkpoint(recorded, tmp_path / "out", ema=True),
        lambda: split_checkpoint(recorded, tmp_path / "out", 4),
        lambda: list(describe(recorded)),
    ]
    list(describe(recorded))
    damage(shard)
    for read in readers:
        with pytest.raises(
            CheckpointError, match=f"mp_rank_01/{layout.MODEL_FILE}: damaged, its checksum is not the one"
        ):
            read()
    assert not (tmp_path / "out").exists()


def test_a_file_of_a_run_is_compared_with_the_runs_record_too(tmp_path):
    run = write_directory(tmp_path / "run", [whole_weights()])
    directory = run / "iter_0000007"
    shard = directory / "mp_rank_00" / layout.MODEL_FILE
    integrity.write(integrity.measure([shard], directory), directory)
    values(shard)
    change_a_value(shard)
    for read in (values, torch_state.load):
        with pytest.raises(CheckpointError, match="damaged, its checksum is not the one that was recorded"):
            read(shard)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"a": 5}', '{"../a": [1, 2]}', '{"/a": [1, 2]}', '{"a": [1, "x"]}', "\xff", "[" * 99999]
)
def test_a_record_that_is_damaged_is_named(recorded, text):
    (recorded / "iter_0000007" / integrity.CHECKSUMS).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="checksums.json: is damaged"):
        values(recorded)


# ----------------------------------------------------------------------------------------------------------- torch_dist


SHAPES = {"split": ((8, 6), 0), "columns": ((6, 8), 1), "whole": ((5,), None)}


def save_torch_dist(folder) -> None:
    parallel = ParallelContext.start(tensor_size=2)
    tensors = {}
    for number, (name, (shape, dim)) in enumerate(SHAPES.items()):
        whole = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) + 100 * number
        tensors[name] = whole if dim is None else whole.chunk(2, dim)[parallel.tensor_rank]
    parts = Shares({name: dim for name, (_, dim) in SHAPES.items()}, parallel).of_parameters("model", tensors)
    store = CheckpointStore(folder, parallel)
    store.save(3, lambda directory: torch_dist.prepare(parts, {"iteration": 3}, directory, parallel))


@pytest.fixture(scope="module")
def saved_torch_dist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    run_ranks(save_torch_dist, 2, folder)
    return folder / "iter_0000003"


@pytest.fixture
def dist(saved_torch_dist, tmp_path):
    """A copy without the record of checksums, as another program leaves it."""
    shutil.copytree(saved_torch_dist, tmp_path / "iter_0000003")
    (tmp_path / "iter_0000003" / integrity.CHECKSUMS).unlink()
    return tmp_path / "iter_0000003"


def dist_values(directory) -> dict[str, torch.Tensor]:
    """What the trainer gets, at TP 1; it reads the plain values first."""
    torch_state.load(directory / layout.STATE_FILE)
    weights = torch_dist.opened(directory, ["model"], {name: dim for name, (_, dim) in SHAPES.items()}.get)["model"]
    found = {f"model.{name}": torch.empty(weights.shape(name)) for name in weights}
    for name in weights:
        weights.copy_range(found[f"model.{name}"], name, 0)
    return found


def converted_values(directory) -> dict[str, torch.Tensor]:
    weights = sources.open_checkpoint(directory).weights(dim_of={name: dim for name, (_, dim) in SHAPES.items()}.get)
    return {f"model.{name}": weights.part(name) for name in weights}


def is_right(found) -> bool:
    return found.keys() == {f"model.{name}" for name in SHAPES} and all(
        torch.equal(found[f"model.{name}"].flatten(), torch.arange(torch.Size(shape).numel()) + 100.0 * number)
        for number, (name, (shape, _)) in enumerate(SHAPES.items())
    )


READERS = [dist_values, converted_values]


def test_a_torch_dist_directory_is_read_right(dist):
    assert all(is_right(read(dist)) for read in READERS)


def trap_index(dist):
    (dist / ".metadata").write_bytes(pickle.dumps(Trap()))


def trap_inside_the_index(dist):
    index = pickle.loads((dist / ".metadata").read_bytes())
    index.planner_data = Trap()
    (dist / ".metadata").write_bytes(pickle.dumps(index))


def trap_part(dist):
    index = pickle.loads((dist / ".metadata").read_bytes())
    key, place = next((key, place) for key, place in index.storage_data.items() if key.fqn == "model.whole")
    buffer = io.BytesIO()
    torch.save(Trap(), buffer)
    path = dist / place.relative_path
    index.storage_data[key] = dataclasses.replace(place, offset=path.stat().st_size, length=len(buffer.getvalue()))
    path.write_bytes(path.read_bytes() + buffer.getvalue())
    (dist / ".metadata").write_bytes(pickle.dumps(index))


def trap_state(dist):
    torch.save({"iteration": Trap()}, dist / "state.pt")


@pytest.mark.parametrize("trap", [trap_index, trap_inside_the_index, trap_part, trap_state])
def test_nothing_in_a_torch_dist_directory_is_run(dist, tmp_path, monkeypatch, trap):
    monkeypatch.chdir(tmp_path)
    torch.save(Trap(), dist / "common.pt")  # megatron-core's own; it is not read
    trap(dist)
    for read in READERS:
        with pytest.raises(CheckpointError, match=r"refused.*it names (posix|nt).system"):
            read(dist)
    assert not (tmp_path / "trapped").exists()


def moved_chunk(index):
    index.state_dict_metadata["model.split"].chunks[1].offsets = torch.Size((2, 0))


def lost_chunk(index):
    del index.state_dict_metadata["model.columns"].chunks[1]


def grown(index):
    index.state_dict_metadata["model.split"].size = torch.Size((12, 6))


def no_numbers(index):
    for key, place in index.storage_data.items():
        index.storage_data[key] = dataclasses.replace(place, offset="0")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (moved_chunk, "the parts of model.split .* overlap, or leave a hole"),
        (lost_chunk, "the parts of model.columns .* not the whole"),
        (grown, "the parts of model.split .* not the whole"),
        (no_numbers, "refused or damaged"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(dist, edit, message):
    index = pickle.loads((dist / ".metadata").read_bytes())
    edit(index)
    (dist / ".metadata").write_bytes(pickle.dumps(index))
    for read in READERS:
        with pytest.raises(CheckpointError, match=message):
            read(dist)


def test_damage_to_a_torch_dist_directory_is_seen_or_changes_nothing(dist):
    chance = random.Random(0)
    whole = {path: path.read_bytes() for path in dist.iterdir()}
    refused = 0
    for trial in range(60):
        path = chance.choice([path for path in sorted(whole) if path.name != "metadata.json"])
        data = bytearray(whole[path])
        at = chance.randrange(len(data))
        if trial % 2:
            data[at] ^= 1 << chance.randrange(8)
        else:
            del data[at : at + 9]
        path.write_bytes(data)
        for read in READERS:
            try:
                assert is_right(read(dist))
            except CheckpointError as error:
                refused += 1
                assert "\n" not in str(error)
        path.write_bytes(whole[path])
    assert refused > 60


def test_a_part_with_a_flipped_value_is_named_without_a_record_too(dist):
    values = torch.arange(24.0).numpy().tobytes()  # the first half of "split"
    (path,) = [path for path in dist.glob("*.distcp") if values in path.read_bytes()]
    data = bytearray(path.read_bytes())
    data[data.index(values) + 6] ^= 1
    path.write_bytes(data)
    for read in READERS:
        with pytest.raises(CheckpointError, match=f"{path.name}: model.split is damaged"):
            read(dist)
