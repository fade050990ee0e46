"""Parameters: every way one comes in, what is refused and how, and where the data lies."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import pytest
import yaml
from conftest import touch
from hypothesis import given, settings
from hypothesis import strategies as st

from goods import params
from goods.errors import GoodsError
from goods.files import ROOT
from goods.params import Params, load_params, read_params
from goods.settings import parse_setting, parse_settings
from goods_utils import main

CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "params").glob("*.yaml"))
DATA_PATHS = ("train_csv", "test_csv", "train_images_dir", "test_images_dir")
# What each field may be given as, and what it then is.
GOOD = [
    ("num_epochs", 3, 3),
    ("num_epochs", "3", 3),  # papermill -r
    ("num_epochs", 3.0, 3),
    ("learning_rate", "1e-4", 1e-4),  # YAML 1.1 reads 1e-4 as text
    ("learning_rate", 1, 1.0),
    ("image_size", 224, 224),
    ("image_size", None, None),
    ("debug", True, True),
    ("debug", "true", True),  # papermill -p debug true
    ("debug", "False", False),
    ("tune", "head", "head"),
    ("run", "2024.12-so400m_v2", "2024.12-so400m_v2"),
    ("text_columns", ["title"], ("title",)),
    ("text_columns", "title", ("title",)),
    ("text_columns", "title, description", ("title", "description")),
    ("text_columns", "[title, 'a, b']", ("title", "a, b")),  # papermill -p keeps lists as text
    ("data_dir", None, None),
]
# What is refused, and what the sentence then says.
BAD = [
    ("num_epochs", "three", "'num_epochs' should be a valid integer.*'three'.*passes over"),
    ("num_epochs", 2.5, "'num_epochs' should be a valid integer"),
    ("num_epochs", True, "'num_epochs' must be a number, not true or false"),
    ("num_epochs", 0, "'num_epochs' should be greater than or equal to 1, but is 0"),
    ("num_epochs", [3], r"'num_epochs' should be a valid integer, but is \[3\]"),
    ("fold", False, "'fold' must be a number, not true or false"),
    ("fold", -1, "'fold' should be greater than or equal to 0"),
    ("fold", 5, "fold 5 is out of range: with n_folds 5 it goes from 0 to 4"),
    ("skip_folds", 5, "skip_folds 5 leaves nothing: n_folds is 5"),
    ("n_folds", 1, "'n_folds' should be greater than or equal to 2"),
    ("seed", 2**32, "'seed' should be less than"),
    ("learning_rate", "fast", "'learning_rate' should be a valid number"),
    ("learning_rate", True, "'learning_rate' must be a number"),
    ("learning_rate", 0, "'learning_rate' should be greater than 0"),
    ("learning_rate", "nan", "'learning_rate' should be a finite number"),
    ("learning_rate", math.inf, "'learning_rate' should be a finite number"),
    ("dropout", 1.0, "'dropout' should be less than 1"),
    ("debug", "perhaps", "'debug' should be a valid boolean"),
    ("debug", 2, "'debug' should be a valid boolean"),
    ("tune", "Head", "'tune' should be 'head', 'last', 'lora' or 'full', but is 'Head'"),
    ("bad_images", "skip", "'bad_images' should be 'blank' or 'error'"),
    ("run", 2024, "'run' should be a valid string, but is 2024"),
    ("run", "../other", "'run' should match pattern"),
    ("run", "", "'run' should match pattern"),
    ("run", "a b", "'run' should match pattern"),
    ("text_columns", [], "'text_columns'"),
    ("text_columns", "", "'text_columns' must be different names"),
    ("text_columns", ["title", "title"], "'text_columns' must be different names"),
    ("text_columns", "[title", r"'text_columns' must look like \[title, description\]"),
    ("text_columns", [1], "'text_columns.0' should be a valid string"),
    ("id_column", "", "'id_column'"),
    ("n_folds", 100_000, "'n_folds' should be less than or equal to 1000"),
    ("label_column", "text", "label_column is 'text', a name that the project gives a column of its own"),
    ("group_column", "sha", "group_column is 'sha', a name that the project gives a column of its own"),
    ("label_column", "id", "label_column and id_column are both 'id'"),
    ("label_column", "title", "label_column 'title' is one of text_columns, too: the text would hold the answer"),
    ("outputs_dir", __file__, "outputs_dir .* can't be made: .*test_params.py is a file; name a folder"),
    ("outputs_dir", f"{__file__}/deep/er", "outputs_dir .* can't be made: .*test_params.py is a file"),
]
# Names that Params doesn't have, and the nearest that it has.
UNKNOWN = [
    ("flod", "fold"),
    ("epochs", "num_epochs"),
    ("lr", None),
    ("batchsize", "batch_size"),
    ("Fold", "fold"),
    ("train_image_dir", "train_images_dir"),
]


def advice(name: str, nearest: str | None) -> str:
    return f"unknown parameter '{name}'.*" + (f"did you mean '{nearest}'" if nearest else "fields of Params")


@pytest.fixture
def config(tmp_path: Path):
    """Writes a config file; returns its path as text."""

    def write(text: str | bytes) -> str:
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def run_cell(source: str, namespace: dict | None = None) -> dict:
    """Runs a notebook cell that may end in read_params(globals()); returns the kernel's variables."""
    namespace = {"gu": params} if namespace is None else namespace
    exec(source, namespace)
    return namespace


def test_names_and_defaults_are_the_seeds():
    expected = {
        "train_csv": "data/train.csv",
        "train_images_dir": "data/train_images/train_images",
        "test_images_dir": "data/test_images/test_images",
        "model_name": "models/siglip-so400m-patch14-384",
        "num_classes": 21,
        "batch_size": 8,
        "eval_batch_size": 16,
        "learning_rate": 2e-5,
        "num_epochs": 5,
        "n_folds": 5,
        "skip_folds": 0,
        "hidden_dim": 1536,
        "dropout": 0.2,
        "image_size": 384,
        "max_text_length": 64,
        "id_column": "id",
        "label_column": "categories",
    }
    p = load_params()
    assert {name: getattr(p, name) for name in expected} == expected
    assert p.chosen_folds == [0, 1, 2, 3, 4]
    assert load_params(skip_folds=3).chosen_folds == [3, 4]


def test_every_field_is_described():
    assert all(field.description for field in Params.model_fields.values())


def test_params_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_params().num_epochs = 3


@pytest.mark.parametrize("name", CONFIGS)
def test_the_shipped_configs_are_valid(name):
    assert load_params(name, data_dir=None).run == Path(name).stem


@pytest.mark.parametrize(("name", "value", "expected"), GOOD)
def test_a_good_value_is_taken_in_from_every_side(config, name, value, expected):
    assert getattr(load_params(**{name: value}), name) == expected
    assert getattr(load_params(config(yaml.safe_dump({name: value}))), name) == expected
    if value is not None:
        assert getattr(read_params({name: value, "config": config("")}), name) == expected


@pytest.mark.parametrize(("name", "value", "sentence"), BAD)
def test_a_bad_value_is_refused_from_every_side(config, name, value, sentence):
    with pytest.raises(GoodsError, match=sentence):
        load_params(**{name: value})
    with pytest.raises(GoodsError, match=sentence):
        load_params(config(yaml.safe_dump({name: value})))
    with pytest.raises(GoodsError, match=sentence):
        read_params({name: value, "config": config("")})


@pytest.mark.parametrize(("name", "nearest"), UNKNOWN)
def test_an_unknown_name_is_refused_from_every_side(config, name, nearest):
    path = config(f"{name}: 2")
    with pytest.raises(GoodsError, match=advice(name, nearest)):
        load_params(**{name: 2})
    with pytest.raises(GoodsError, match=advice(name, nearest).replace(".*", f" in {path}.*")):
        load_params(path)
    for value in (2, None, "x", [1], {"a": 1}):
        with pytest.raises(GoodsError, match=advice(name, nearest)):
            read_params({name: value})


def test_all_ill_typed_values_are_told_at_once():
    with pytest.raises(GoodsError, match=r"(?s)'batch_size'.*'num_epochs'"):
        load_params(num_epochs="x", batch_size=-1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("num_epochs: [1", "is not valid YAML"),
        ("run: 2024-13-45", "is not valid YAML.*month"),
        ("a: b: c", "is not valid YAML"),
        (b"run: caf\xe9", "is not valid YAML"),
        ("dropout: 0.1\nseed: 1\ndropout: 0.2", "says dropout more than once"),
        ("- num_epochs", "must hold lines of 'name: value'"),
        ("num_epochs", "must hold lines of 'name: value'"),
        ("num_epochs: null", "'num_epochs' should be a valid integer, but is None"),
        ("on: 3", "unknown parameter 'True'"),  # YAML 1.1 reads the key as a boolean
        ("3: 4", "unknown parameter '3'"),
        ("config: other.yaml", "unknown parameter 'config'.*fields of Params"),
    ],
)
def test_a_bad_config_file_is_refused(config, text, sentence):
    with pytest.raises(GoodsError, match=f"(?s){sentence}"):
        load_params(config(text))


def test_a_missing_config_file_names_those_there_are():
    with pytest.raises(GoodsError, match=r"there is no config .*nope\.yaml; in params/ there are: .*params/demo\.yaml"):
        load_params("params/nope.yaml")
    with pytest.raises(GoodsError, match=r"config .*params is a folder; name a YAML file"):
        load_params("params")


def test_an_empty_config_means_the_defaults(config):
    assert load_params(config("")) == load_params(config("# nothing\n")) == load_params()


def test_given_goes_before_config_goes_before_defaults(config):
    path = config("num_epochs: 7\nbatch_size: 4\n")
    p = load_params(path, batch_size=2)
    assert (p.num_epochs, p.batch_size, p.n_folds) == (7, 2, 5)
    p = read_params({"config": path, "num_epochs": None, "batch_size": 2})
    assert (p.num_epochs, p.batch_size, p.n_folds) == (7, 2, 5)


def test_a_parameters_cell_with_what_a_kernel_holds_besides(config):
    path = config("fold: 3\nnum_epochs: 7")
    cell = f"""
import os
import tempfile
from pathlib import Path
config = {path!r}
run = "mine"
fold = None
num_epochs = 2
_private = 5
In = ["..."]
Out = {{}}
def quit(): pass
p = gu.read_params(globals())
"""
    p = run_cell(cell)["p"]
    assert (p.run, p.fold, p.num_epochs) == ("mine", 3, 2)


def test_without_a_config_a_notebook_reads_the_demo(monkeypatch, config):
    monkeypatch.setattr("goods.params.DEFAULT_CONFIG", config("run: from-default"))
    assert read_params({}).run == read_params({"config": None}).run == "from-default"
    with pytest.raises(GoodsError, match="there is no config"):
        read_params({"config": 3})


@pytest.mark.parametrize("value", [Path("data"), os, print, {1, 2}, 1 + 2j])
def test_a_fields_value_is_never_left_out_for_its_type(config, value):
    with pytest.raises(GoodsError, match="'model_name' should be a valid string"):
        read_params({"config": config(""), "model_name": value})


def test_the_cell_can_be_run_again_after_others(config):
    first = f"config = {config('')!r}\nfold = 1\n"
    read = "p = gu.read_params(globals())"
    kernel = run_cell(first + read)
    run_cell("folds_done = [0]\nx = 3\nscores = {}\nname = 'fused'\nimport json\nprint = print", kernel)
    assert run_cell(read, kernel)["p"].fold == 1
    assert run_cell(first + "fold = 2\n" + read, kernel)["p"].fold == 2
    with pytest.raises(GoodsError, match="did you mean 'fold'"):  # a misspelling is still one
        run_cell("flod = 3\n" + read, kernel)


def test_a_mended_cell_says_how_to_get_rid_of_the_misspelling(config):
    kernel = run_cell(f"config = {config('')!r}")
    read = "p = gu.read_params(globals())"
    with pytest.raises(GoodsError):
        run_cell("flod = 2\n" + read, kernel)
    with pytest.raises(GoodsError, match=r"\(once the cell is mended: del flod\)"):
        run_cell("fold = 2\n" + read, kernel)
    assert run_cell("del flod\n" + read, kernel)["p"].fold == 2


def test_a_notebook_shows_the_sentence_without_frames():
    assert GoodsError("what, where, what to do")._render_traceback_() == ["GoodsError: what, where, what to do"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("num_epochs=3", ("num_epochs", 3)),
        ("learning_rate=1e-4", ("learning_rate", "1e-4")),
        ("debug=true", ("debug", True)),
        ("image_size=null", ("image_size", None)),
        ("data_dir=../shared/data/hm", ("data_dir", "../shared/data/hm")),
        ("id_column='007'", ("id_column", "007")),
        ("label_column=a=b", ("label_column", "a=b")),
        ("text_columns=[title, description]", ("text_columns", ["title", "description"])),
        ("data_dir=", ("data_dir", None)),
    ],
)
def test_parse_setting(text, expected):
    assert parse_setting(text) == expected


@pytest.mark.parametrize(
    "text", ["num_epochs", "=3", "num epochs=3", "--fold=3", "", "text_columns=[a", "run=2024-13-45"]
)
def test_a_setting_that_is_none_is_refused(text):
    with pytest.raises(GoodsError, match=r"name=value|is not valid YAML"):
        parse_setting(text)


@settings(deadline=None)
@given(st.one_of(st.text(), st.text("[]{}:,'\"&*!%@0123456789-_bx. ").map(lambda text: f"run={text}")))
def test_parse_setting_raises_nothing_but_sentences(text):
    try:
        name, _ = parse_setting(text)
    except GoodsError:
        return
    assert name.isidentifier()


LAYOUTS = [
    ("the competition's", "", "train_images/train_images/", "test_images/test_images/"),
    ("photos one level up", "", "train_images/", "test_images/"),
    ("images below one folder", "", "images/train/", "images/test/"),
    ("the sister competition's", "", "train/train/", "test/test/"),
    ("one folder each", "", "train/", "test/"),
    ("one folder for all", "", "images/", "images/"),
    ("unzipped one level down", "goods/", "train_images/train_images/", "test_images/test_images/"),
]


@pytest.mark.parametrize(("home", "train", "test"), [row[1:] for row in LAYOUTS], ids=[row[0] for row in LAYOUTS])
def test_data_dir_finds_the_four_paths(tmp_path, home, train, test):
    touch(tmp_path, *(home + name for name in ("train.csv", "test.csv", train, test)))
    p = load_params(data_dir=str(tmp_path))
    expected = ("train.csv", "test.csv", train, test)
    assert [Path(getattr(p, name)) for name in DATA_PATHS] == [tmp_path / home / name for name in expected]


def test_tables_in_folders_of_their_own_are_found(tmp_path):
    touch(tmp_path, "train/train.csv", "train/images/", "test/test.csv", "test/images/")
    p = load_params(data_dir=str(tmp_path))
    assert [Path(getattr(p, name)) for name in DATA_PATHS] == [
        tmp_path / name for name in ("train/train.csv", "test/test.csv", "train/images", "test/images")
    ]


@pytest.mark.parametrize("name", DATA_PATHS)
def test_a_path_given_alone_wins_over_data_dir(tmp_path, config, name):
    touch(tmp_path, "train.csv", "test.csv", "train_images/train_images/", "test_images/test_images/")
    for p in (
        load_params(data_dir=str(tmp_path), **{name: "elsewhere"}),
        load_params(config(f"{name}: elsewhere"), data_dir=str(tmp_path)),
    ):
        assert getattr(p, name) == "elsewhere"
        assert all(Path(getattr(p, other)).is_relative_to(tmp_path) for other in DATA_PATHS if other != name)


def test_without_data_dir_the_paths_stand_as_given():
    assert load_params(train_csv="mine.csv").train_csv == "mine.csv"


def test_data_dir_must_be_a_folder(tmp_path):
    with pytest.raises(GoodsError, match=r"data_dir .*nowhere is not a folder; name the folder that holds train\.csv"):
        load_params(data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(GoodsError, match=r"is made by: python -m goods\.data\.sample"):
        load_params(data_dir=str(tmp_path / "sample"))


def test_two_competitions_below_data_dir_are_not_guessed_between(tmp_path):
    touch(tmp_path, "a/train.csv", "a/test.csv", "b/train.csv", "b/test.csv")
    with pytest.raises(GoodsError, match=r"holds more than one train\.csv; name one of its folders: .*a, .*b"):
        load_params(data_dir=str(tmp_path))


def test_the_sample_never_fills_a_gap_in_the_real_data(tmp_path):
    touch(tmp_path, "train.csv", "train/", "sample/train.csv", "sample/test.csv", "sample/test_images/test_images/")
    p = load_params(data_dir=str(tmp_path))
    assert Path(p.test_csv) == tmp_path / "test.csv"  # which is not there, as read_goods will say
    assert Path(p.test_images_dir) == tmp_path / "test_images" / "test_images"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "num_epochs=010",
            "'num_epochs=010': 010 is 8 in YAML; write 8 or what is meant, or as text num_epochs='\"010\"'",
        ),
        ("max_hours=1:30", "'max_hours=1:30': 1:30 is 90 in YAML; write 90 or what is meant"),
        ("folds=[1, 010]", "010 is 8 in YAML"),
        ("max_hours=1:30.5", "1:30.5 is 90.5 in YAML"),
    ],
)
def test_a_number_that_yaml_reads_otherwise_is_refused(text, sentence, config):
    with pytest.raises(GoodsError, match=re.escape(sentence)):
        parse_setting(text)
    with pytest.raises(GoodsError, match=re.escape(sentence.split(": ")[-1].split(";")[0])):
        load_params(config(text.replace("=", ": ", 1)))


def test_what_only_looks_like_one_is_read_as_ever():
    assert parse_setting("run='010'") == ("run", "010") and parse_setting("n=08") == ("n", "08")
    assert [parse_setting(f"n={text}")[1] for text in ("0", "10", "-5", "0.5", "1_000")] == [0, 10, -5, 0.5, 1000]


def test_a_setting_is_given_once_and_where_its_option_is():
    with pytest.raises(GoodsError, match="--set gives a twice, at last as a=2; leave one of them out"):
        parse_settings(["a=1", "a=2"])
    with pytest.raises(GoodsError, match="--set fold=1: fold has an option of its own, --fold"):
        parse_settings(["fold=1"], {"fold": "--fold"})
    with pytest.raises(SystemExit, match="--set fold=1: fold has an option of its own, --fold"):
        main(["fit", "--config", "params/demo.yaml", "--set", "fold=1"])
