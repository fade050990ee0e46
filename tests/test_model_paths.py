"""The model directories that parameters name, each by a name of its own."""

from __future__ import annotations

from goods.model_paths import count_paths, model_paths, parameter_of, path_of, with_paths

THREE = {"model_name": "siglip", "extra_embeddings": ("bge", "qwen3", "minilm")}


def test_the_first_of_a_list_has_the_parameters_name() -> None:
    names = {"model_name": "siglip", "extra_embeddings": "bge", "extra_embeddings_2": "qwen3"}
    assert model_paths(THREE, THREE) == names | {"extra_embeddings_3": "minilm"}
    assert model_paths({"extra_embeddings": "bge"}, ["extra_embeddings"]) == {"extra_embeddings": "bge"}
    assert model_paths({"extra_embeddings": None}, ["extra_embeddings"]) == {}


def test_a_name_leads_back_to_its_parameter_and_its_path() -> None:
    assert [parameter_of(name) for name in ("model_name", "extra_embeddings", "extra_embeddings_12")] == [
        "model_name", "extra_embeddings", "extra_embeddings"
    ]  # fmt: skip
    assert path_of(THREE, "extra_embeddings_2") == "qwen3" and path_of(THREE, "model_name") == "siglip"


def test_other_paths_take_the_places_of_those_they_are_named_for() -> None:
    moved = {"extra_embeddings_3": "/models/minilm", "model_name": "/models/siglip"}
    assert with_paths(THREE, moved) == {
        "model_name": "/models/siglip", "extra_embeddings": ("bge", "qwen3", "/models/minilm")
    }  # fmt: skip


def test_paths_are_counted_as_they_are_recorded() -> None:
    assert [count_paths(value) for value in (None, (), "bge", ["bge", "qwen3"])] == [0, 0, 1, 2]
