"""How a text encoder's directory says that a text becomes one vector; read from its JSON files, nothing is loaded.

sentence-transformers (sbert.net) keeps that in modules.json and in the files that it names. What can't be done as they
say is refused in a sentence: embeddings that are pooled in another way than the encoder was trained for are worse, and
nobody would see it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goods.errors import GoodsError, listing

POOLINGS = {
    "mean": "the mean of all tokens",
    "cls": "the first token",
    "lasttoken": "the last token",
    "max": "the largest of each number over all tokens",
}
# As files of older versions of the library name them, each true or false.
OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")  # of torch.nn, behind a dense layer
# Settings of the transformer that would have to be followed, and what of them changes nothing here.
SETTINGS = ("processing_kwargs", "config_args", "config_kwargs", "tokenizer_args", "processor_kwargs")
HARMLESS = {"trust_remote_code", "padding_side"}


@dataclass(frozen=True)
class Dense:
    """A linear layer behind the pooling: the folder with its weights, and the activation after it."""

    folder: Path
    activation: str
    dim: int


@dataclass(frozen=True)
class Normalize:
    """The vector is brought to length 1."""


@dataclass(frozen=True)
class Encoding:
    """From a text to one vector. pooling, max_length: None where the directory leaves it open.

    prompt: what stands before each text; pools_prompt: whether its tokens count in the pooling. lower: texts are made
    lower case. after: what follows the pooling. dim: length of the pooled vector, where it is said; cut_to: numbers
    that are kept of the last one. said: what a person should hear of it.
    """

    pooling: str | None = None
    max_length: int | None = None
    prompt: str = ""
    pools_prompt: bool = True
    lower: bool = False
    after: tuple[Dense | Normalize, ...] = (Normalize(),)
    dim: int | None = None
    cut_to: int | None = None
    said: tuple[str, ...] = ()

    def dim_of(self, hidden_size: int) -> int:
        """The length of a vector, where the model's states have hidden_size numbers."""
        *_, last = hidden_size, *(step.dim for step in self.after if isinstance(step, Dense))
        return min(last, self.cut_to or last)


def read_encoding(folder: Path) -> Encoding:
    """What the directory of a text encoder says; of one without modules.json, that all is open.

    Raises GoodsError for a file that is missing or damaged, and for what isn't supported.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return Encoding()
    modules = [_module(entry, path) for entry in _read(path, list)]
    names = [name for name, _ in modules]
    if names[:1] != ["Transformer"] or names[1:2] != ["Pooling"]:
        raise _unsupported(path, f"the modules {listing(names) or 'none'}; a Transformer and a Pooling must come first")
    if modules[0][1] != folder:
        raise _unsupported(path, f"its transformer in the folder {modules[0][1].name}; save it anew with "
                                 "sentence-transformers, which puts it on top")  # fmt: skip
    pooling, dim, pools_prompt = _pooling(modules[1][1] / "config.json")
    max_length, lower = _transformer(folder)
    prompt, cut_to, said = _prompt(folder / "config_sentence_transformers.json")
    after = tuple(step for name, place in modules[2:] for step in _step(name, place, path))
    return Encoding(pooling, max_length, prompt, pools_prompt, lower, after, dim, cut_to, said)


def _module(entry: Any, path: Path) -> tuple[str, Path]:
    """The name of a module's class, and its folder."""
    match entry:
        case {"type": str(kind), "path": str(where)} if not Path(where).is_absolute() and ".." not in Path(where).parts:
            if not kind.startswith("sentence_transformers."):
                raise _unsupported(path, f"the module {kind}: code of a directory's own is never run")
            return kind.rpartition(".")[2], path.parent / where
    raise _damaged(path, f"it names {json.dumps(entry)[:80]} as a module")


def _pooling(path: Path) -> tuple[str, int, bool]:
    """How tokens become one vector, its length, and whether the prompt's tokens take part."""
    config = _read(path, dict)
    given = config.get("pooling_mode", [how for name, how in OLD_POOLINGS.items() if config.get(name) is True])
    ways = [given] if isinstance(given, str) else given
    dim = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    if not (isinstance(ways, list) and ways and all(isinstance(way, str) for way in ways) and isinstance(dim, int)):
        raise _damaged(path, "it doesn't say how tokens become one vector, and of which length")
    if len(ways) > 1 or ways[0] not in POOLINGS:
        known = ", ".join(POOLINGS)
        raise _unsupported(path, f"the pooling {' with '.join(ways)}; what can be done is one of {known}")
    return ways[0], dim, config.get("include_prompt", True) is not False


def _transformer(folder: Path) -> tuple[int | None, bool]:
    """The longest text in tokens, where it is said, and whether texts are made lower case."""
    found = sorted(folder.glob("sentence_*_config.json"))  # sentence_bert_config.json, whatever the architecture
    if not found:
        return None, False
    path, config = found[0], _read(found[0], dict)
    for name in SETTINGS:
        given = config.get(name)
        if given and not (isinstance(given, dict) and given.keys() <= HARMLESS):
            raise _unsupported(path, f"{name} {json.dumps(given)[:80]}, which aren't followed here")
    if (task := config.get("transformer_task", "feature-extraction")) != "feature-extraction":
        raise _unsupported(path, f"the task {task}; an encoder of texts does feature-extraction")
    if (inputs := config.get("modality_config") or _PLAIN) != _PLAIN:  # such as messages of a chat
        raise _unsupported(path, f"the inputs {json.dumps(inputs)[:120]}; what can be read is plain text")
    longest = config.get("max_seq_length")
    if longest is not None and not (isinstance(longest, int) and longest > 0):
        raise _damaged(path, f"its max_seq_length is {longest!r}")
    return longest, config.get("do_lower_case") is True


_PLAIN = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


def _prompt(path: Path) -> tuple[str, int | None, tuple[str, ...]]:
    """What stands before each text, to how many numbers a vector is cut, and what is to be said of the prompts.

    The default one counts, as with the library; where none is the default, that for classification, else none.
    """
    if not path.is_file():
        return "", None, ()
    config = _read(path, dict)
    prompts, default, cut_to = (config.get(name) for name in ("prompts", "default_prompt_name", "truncate_dim"))
    prompts = prompts or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise _damaged(path, "its prompts aren't texts by their names")
    if default is not None and default not in prompts:
        raise _damaged(
            path, f"its default_prompt_name is {default!r}, and its prompts are {listing(prompts) or 'none'}"
        )
    if cut_to is not None and not (isinstance(cut_to, int) and cut_to > 0):
        raise _damaged(path, f"its truncate_dim is {cut_to!r}")
    if default is not None or not any(prompts.values()):
        return prompts.get(default) or "", cut_to, ()
    chosen = next((name for name in prompts if name.lower() == "classification" and prompts[name]), None)
    what = f"'{chosen}' is put before each text" if chosen else "none is put before the texts, as the library does"
    return prompts.get(chosen) or "", cut_to, (
        f"{path.parent} has the prompts {listing(name for name in prompts if prompts[name])} and no default one: "
        f"{what}; default_prompt_name in {path.name} chooses another",
    )  # fmt: skip


def _step(name: str, folder: Path, path: Path) -> Iterator[Dense | Normalize]:
    """What a module behind the pooling does to the vector."""
    file = folder / "config.json"
    config = _read(file, dict) if name == "Dense" or file.is_file() else {}
    if name not in ("Dense", "Normalize", "Dropout"):  # the last one is for training
        raise _unsupported(path, f"the module {name} behind the pooling; Dense and Normalize are known")
    names = {config.get(key) or "sentence_embedding" for key in ("module_input_name", "module_output_name")}
    if names != {"sentence_embedding"} or config.get("use_residual"):
        raise _unsupported(file, json.dumps(config)[:120])
    if name == "Normalize":
        yield Normalize()
    elif name == "Dense":
        module, _, activation = str(config.get("activation_function", "torch.nn.Tanh")).rpartition(".")
        if not f"{module}.".startswith("torch.nn.") or activation not in ACTIVATIONS:
            raise _unsupported(file, f"the activation {module}.{activation}; known are {', '.join(ACTIVATIONS)}")
        if not isinstance(dim := config.get("out_features"), int):
            raise _damaged(file, f"its out_features is {dim!r}")
        yield Dense(folder, activation, dim)


def _read(path: Path, kind: type) -> Any:
    """The object or list in a JSON file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, "it can't be read" if path.is_file() else "it isn't there") from error
    if not isinstance(found, kind):
        raise _damaged(path, f"it holds no {'object' if kind is dict else 'list'}")
    return found


def _damaged(path: Path, why: str) -> GoodsError:
    return GoodsError(f"{path} is missing or damaged: {why}; download the model's directory again, with its folders")


def _unsupported(path: Path, what: str) -> GoodsError:
    return GoodsError(f"{path} asks for {what}. Take another encoder")
