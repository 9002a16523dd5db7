"""Checkpoints: one file of named arrays and JSON (safetensors), written whole or not at all.

Three levels, each on top of the one before:

- `save_arrays` / `load_arrays`: named tensors and a JSON manifest. A file is written beside its
  place, flushed to the disk and renamed, so a kill or a full disk leaves the previous one whole.
  Declared sizes are checked against the file before anything is read. Nothing is ever unpickled.
- `save_state` / `load_state`: any nesting of mappings, lists, tuples, numbers and tensors, such as
  the state of an optimizer. What comes back is equal bit for bit.
- `save_frozen` / `load_frozen`: a model as it serves: live rows, codes and the other parameters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding
from celrec.baselines.registry import all_baselines
from celrec.core.codes import bits_for, pack, pack_bits, take_bits, unpack, unpack_weights
from celrec.core.embedding import (
    ClusteredEmbedding,
    ClusteredEmbeddingBag,
    ClusteredTable,
    codes_kept_on_error,
)
from celrec.core.memory import SupportsMemory
from celrec.errors import CheckpointError

_MANIFEST = "celrec-1"  # the file's only metadata key: with one, equal content gives equal bytes
_PERSONAL = ("personal_levels", "personal_scale", "personal_of")
_ADDITIVE = ("level_rows", "level_codes")
_NAMES_IN_A_MESSAGE = 4


# --- named arrays --------------------------------------------------------------------------------


def save_arrays(path: Path, arrays: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """Write named arrays and a manifest to one file, replacing it whole.

    arrays : tensors of any shape, type and device; copied to the CPU if elsewhere
    manifest : ready for JSON; floats come back bit for bit
    raises : CheckpointError if the file cannot be written; the previous one is then untouched
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    metadata = {_MANIFEST: json.dumps(manifest)}
    try:
        partial.touch()
        mode = partial.stat().st_mode  # what the umask asks for; save_file would keep others out
        save_file(_in_memory_of_their_own(arrays), partial, metadata=metadata)
        partial.chmod(mode)
        _flush_to_disk(partial)
        partial.replace(path)
        _flush_to_disk(path.parent)  # the new name must survive a power cut as well
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} could not be written: {error}; the previous checkpoint, if there was one, is "
            "untouched. Free some space or choose another folder, and resume"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def load_arrays(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_arrays` wrote: arrays on the CPU, and the manifest.

    raises : CheckpointError if the file is missing, truncated, of another format, or declares
        sizes that do not fit it
    """
    path = Path(path)
    try:
        # safe_open holds header length, shapes, types and offsets against the size of the file
        # before it reads any array.
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _MANIFEST not in metadata:
                raise CheckpointError(
                    f"{path} is a safetensors file, but no checkpoint of celrec: its metadata are "
                    f"{sorted(metadata)}, wanted {_MANIFEST!r}"
                )
            manifest = json.loads(metadata[_MANIFEST])
            # Copies: what safe_open gives may share the file's pages.
            arrays = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; check the path, or train first") from error
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged or no checkpoint: {error}; restore it from a copy, or delete it "
            "and start again"
        ) from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path} has a manifest that is no JSON object; it is damaged")
    return arrays, manifest


def _in_memory_of_their_own(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays as the format wants them: contiguous, and no two over the same memory."""
    separate = {}
    taken: set[int] = set()
    for name, array in arrays.items():
        tensor = array.detach().contiguous()
        address = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if address in taken else tensor
        taken.add(address)
    return separate


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- nested state --------------------------------------------------------------------------------


def save_state(path: Path, state: Any, *, kind: str) -> None:
    """Write nested state to one file.

    state : mappings with string or integer keys, lists, tuples, tensors, numbers, strings, None
    kind : what the file is for; `load_state` asks for it again
    raises : CheckpointError if the state holds anything else, or the file cannot be written
    """
    arrays, structure = pack_state(state)
    save_arrays(path, arrays, {"kind": kind, "state": structure})


def load_state(path: Path, *, kind: str) -> Any:
    """Read what `save_state` wrote; tensors are on the CPU.

    raises : CheckpointError if the file is missing, damaged, or of another kind
    """
    arrays, manifest = load_arrays(path)
    if manifest.get("kind") != kind:
        raise CheckpointError(
            f"{path} holds {manifest.get('kind')!r}, wanted {kind!r}; is it another file of a run?"
        )
    try:
        return unpack_state(arrays, manifest["state"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged manifest: {error!r}") from error


def pack_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Take nested state apart into named arrays and JSON.

    returns : (arrays, structure). An array's name is the path to it, joined with slashes

    >>> arrays, structure = pack_state({"step": 3, "moments": [torch.zeros(2), None]})
    >>> list(arrays)
    ['moments/0']
    >>> unpack_state(arrays, structure)
    {'step': 3, 'moments': [tensor([0., 0.]), None]}
    """
    arrays: dict[str, Tensor] = {}

    def packed(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            while path in arrays:  # keys "a/b" and "a", "b" make the same path
                path += "'"
            arrays[path] = value
            return {"tensor": path}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list | tuple):
            name = "list" if isinstance(value, list) else "tuple"
            return {name: [packed(part, _joined(path, i)) for i, part in enumerate(value)]}
        if isinstance(value, Mapping):
            for key in value:
                if isinstance(key, bool) or not isinstance(key, int | str):
                    raise CheckpointError(
                        f"{path or 'the state'} has a key {key!r}; wanted strings or integers"
                    )
            pairs = [[key, packed(part, _joined(path, key))] for key, part in value.items()]
            return {"mapping": pairs}
        raise CheckpointError(
            f"{path or 'the state'} is of type {type(value).__name__}, which a checkpoint cannot "
            "hold; wanted tensors, numbers, strings, None, or mappings, lists and tuples of them"
        )

    structure = packed(state, "")
    return arrays, structure


def unpack_state(arrays: Mapping[str, Tensor], structure: Any) -> Any:
    """Put together what `pack_state` took apart.

    raises : KeyError, TypeError or ValueError if the two do not belong together
    """
    if not isinstance(structure, dict):
        return structure
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return arrays[content]
    if kind == "mapping":
        return {key: unpack_state(arrays, part) for key, part in content}
    if kind in ("list", "tuple"):
        parts = [unpack_state(arrays, part) for part in content]
        return parts if kind == "list" else tuple(parts)
    raise ValueError(f"unknown part {kind!r}")


def _joined(path: str, key: int | str) -> str:
    return f"{path}/{key}" if path else str(key)


# --- models and optimizers -----------------------------------------------------------------------


def load_model_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a model the parameters and buffers that a checkpoint holds.

    state : as from `model.state_dict()`
    raises : CheckpointError naming what is missing, left over, or of another shape or type
    """
    with codes_kept_on_error(m for m in model.modules() if isinstance(m, ClusteredTable)):
        _check_fits(model, state)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # a table found that its parts contradict each other
        raise CheckpointError(f"the checkpoint contradicts itself: {error}") from error


def _check_fits(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give clustered tables the sizes of codes that a checkpoint has, and compare all the rest."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, ClusteredTable | CompressedEmbedding):
            module.make_room_for(state, f"{name}." if name else "")
    wanted = model.state_dict()
    problems = [f"{name} is missing" for name in wanted.keys() - state.keys()]
    problems += [f"{name} is unknown to the model" for name in state.keys() - wanted.keys()]
    for name in wanted.keys() & state.keys():
        found = state[name]
        if not isinstance(found, Tensor):
            problems.append(f"{name} is no array")
        elif found.shape != wanted[name].shape or found.dtype != wanted[name].dtype:
            problems.append(
                f"{name} is {_looks(found)} in the checkpoint, {_looks(wanted[name])} in the model"
            )
    if problems:
        raise CheckpointError(
            f"the checkpoint is of another model than this {type(model).__name__}: "
            f"{_listed(problems)}. Build the model with the settings that the checkpoint's run used"
        )


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimizer the state that a checkpoint holds.

    state : as from `optimizer.state_dict()`
    raises : CheckpointError if it is of another optimizer or other parameters
    """
    try:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        is_fused = any(group.get("fused") for group in optimizer.param_groups)
        for index, found in state["state"].items():
            for name, value in found.items():
                if isinstance(value, Tensor):
                    _check_optimizer_array(name, value, parameters[index], is_fused=is_fused)
        optimizer.load_state_dict(dict(state))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"the checkpoint does not fit this {type(optimizer).__name__}: {error}"
        ) from error


def _check_optimizer_array(name: str, value: Tensor, parameter: Tensor, *, is_fused: bool) -> None:
    """Fused kernels trust these shapes: a wrong one would crash the process."""
    shape, wanted = value.shape, parameter.shape
    if name == "step":
        is_right = value.numel() == 1
    elif is_fused:
        is_right = shape == wanted
    else:  # some optimizers keep one number per row or column, or a vector of their own
        is_right = len(shape) != len(wanted) or all(
            n in (1, m) for n, m in zip(shape, wanted, strict=True)
        )
    if not is_right:
        raise ValueError(f"its {name} is {_looks(value)}, for a parameter of {_looks(parameter)}")


def _looks(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _listed(problems: Iterable[str]) -> str:
    ordered = sorted(problems)
    shown = "; ".join(ordered[:_NAMES_IN_A_MESSAGE])
    more = len(ordered) - _NAMES_IN_A_MESSAGE
    return f"{shown}; and {more} more" if more > 0 else shown


# --- frozen models -------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrozenModel:
    """What a model needs to serve.

    tables : by the module's name in the model; each looks up exactly as the trained table did
    others : every other parameter and buffer, by name
    """

    tables: dict[str, nn.Module]
    others: dict[str, Tensor]

    def install(self, model: nn.Module) -> nn.Module:
        """Put the frozen tables and parameters into a model of the same make; returns the model.

        The model comes back in evaluation mode. Its own tables may have any size: they go.

        raises : CheckpointError if the model has other tables or parameters
        """
        names_of = _names_of_tables(model)
        if {names[0] for names in names_of.values()} != self.tables.keys():
            raise CheckpointError(
                f"this {type(model).__name__} has tables "
                f"{sorted(names[0] for names in names_of.values())}, but the frozen file holds "
                f"{sorted(self.tables)}; it was saved from another model"
            )
        state = dict(self.others)
        for first_name, *more_names in names_of.values():
            table = self.tables[first_name]
            for name in (first_name, *more_names):
                model.set_submodule(name, table)
                state |= {f"{name}.{part}": value for part, value in table.state_dict().items()}
        load_model_state(model, state)
        return model.eval()


def save_frozen(model: nn.Module, path: Path) -> None:
    """Write only what serving needs: live rows, codes and the other parameters.

    The tables take exactly the total bytes that `memory_report` states; the file adds a header.

    raises : CheckpointError for a table of a kind that this function does not know
    """
    arrays: dict[str, Tensor] = {}
    tables: dict[str, Any] = {}
    others = model.state_dict()
    for table, names in _names_of_tables(model).items():
        parts, options = _frozen_table(names[0], table)
        arrays |= {f"tables/{names[0]}/{part}": value for part, value in parts.items()}
        tables[names[0]] = options
        for key in [f"{name}.{part}" for name in names for part in table.state_dict()]:
            del others[key]
    arrays |= {f"others/{name}": value for name, value in others.items()}
    save_arrays(path, arrays, {"kind": "frozen", "tables": tables})


def load_frozen(path: Path) -> FrozenModel:
    """Read what `save_frozen` wrote.

    raises : CheckpointError if the file is missing, damaged, or of another kind
    """
    arrays, manifest = load_arrays(path)
    if manifest.get("kind") != "frozen":
        raise CheckpointError(f"{path} holds {manifest.get('kind')!r}, wanted 'frozen'")
    tables: dict[str, nn.Module] = {}
    try:
        for name, options in manifest["tables"].items():
            prefix = f"tables/{name}/"
            parts = {
                key.removeprefix(prefix): value
                for key, value in arrays.items()
                if key.startswith(prefix)
            }
            tables[name] = _thawed_table(parts, dict(options)).requires_grad_(False).eval()
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} has a damaged table: {error}") from error
    others = {
        key.removeprefix("others/"): value
        for key, value in arrays.items()
        if key.startswith("others/")
    }
    return FrozenModel(tables, others)


def _names_of_tables(model: nn.Module) -> dict[nn.Module, list[str]]:
    """The tables that memory_report counts; several names where a model uses one twice."""
    names_of: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        is_full = isinstance(module, nn.Embedding | nn.EmbeddingBag)
        if is_full or isinstance(module, SupportsMemory):
            names_of.setdefault(module, []).append(name)
    return names_of


def _frozen_table(name: str, table: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The arrays of a table that serve, and the options to make it again."""
    options: dict[str, Any] = {"class": type(table).__name__}
    for option in ("padding_idx", "max_norm", "norm_type", "mode", "include_last_offset"):
        if hasattr(table, option):
            options[option] = getattr(table, option)
    if isinstance(table, ClusteredTable):
        if table.row_dim < table.embedding_dim:
            options["embedding_dim"] = table.embedding_dim
        live = table.live_clusters()
        position_of = torch.zeros(table.max_clusters, dtype=torch.long, device=live.device)
        position_of[live] = torch.arange(live.numel(), device=live.device)
        if table.is_packed:
            options |= {
                "num_embeddings": table.num_embeddings,
                "max_clusters": table.max_clusters,
            }
            codes = pack_bits(position_of[unpack(table.cluster_of)], bits_for(table.max_clusters))
        else:
            codes = pack(position_of[unpack(table.codes)], table.codes.dtype)
        parts = {"rows": table.weight[live], "codes": codes}
        if table.blend_size > 1:
            parts["code_weights"] = table.code_weights
        if table.num_personal:
            parts |= {name: getattr(table, name) for name in _PERSONAL}
        if table.num_levels:
            parts |= {name: getattr(table, name) for name in _ADDITIVE}
        return parts, options
    if isinstance(table, CompressedEmbedding):
        if not table.is_finished:
            raise CheckpointError(
                f"table {name!r} is a {type(table).__name__} in training; call its finish() first"
            )
        options |= table.options() | {"kind": table.kind, "start": table.start}
        return table.state_dict(), options
    if isinstance(table, nn.Embedding | nn.EmbeddingBag):
        return {"rows": table.weight}, options
    raise CheckpointError(
        f"table {name!r} is a {type(table).__name__}, which cannot be frozen; known are clustered "
        "and full tables, and baselines"
    )


def _thawed_table(parts: dict[str, Tensor], options: dict[str, Any]) -> nn.Module:
    kind = options.pop("class")
    if "kind" in options:
        start = options.pop("start")
        baseline = all_baselines()[options.pop("kind")](**options)
        for number in parts.values():
            if number.is_floating_point():
                baseline.to(number.dtype)
        baseline.start = start
        baseline.load_state_dict(parts)
        return baseline
    rows = parts["rows"]
    if kind in ("Embedding", "EmbeddingBag"):
        full = nn.Embedding if kind == "Embedding" else nn.EmbeddingBag
        return full.from_pretrained(rows, freeze=True, **options)
    if kind in ("ClusteredEmbedding", "ClusteredEmbeddingBag"):
        clustered = ClusteredEmbedding if kind == "ClusteredEmbedding" else ClusteredEmbeddingBag
        codes, weights = parts["codes"], None
        is_packed = "max_clusters" in options
        if is_packed:
            entities = torch.arange(options.pop("num_embeddings"))
            codes = take_bits(codes, entities, bits_for(options["max_clusters"]))
        else:
            codes = unpack(codes)
        if "code_weights" in parts:
            weights = unpack_weights(parts["code_weights"], codes.shape[1])
        table = clustered.from_pretrained(rows, codes, weights, freeze=True, **options)
        if is_packed:
            table.pack_codes()
        more = {name: parts[name] for name in (*_PERSONAL, *_ADDITIVE) if name in parts}
        table.load_state_dict(table.state_dict() | more)
        return table
    raise ValueError(f"unknown kind of table {kind!r}")
