"""What careless hands type: every mistake ends with its status and a sentence that says what is wrong, in the words
that were typed, before a model is loaded."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("cyclopts")
pytest.importorskip("msgspec")

from tests.processes import environment
from textinv_core import Embedding, save_embedding
from textinv_core.commands import inputs

ROOT = Path(__file__).parents[2]
WORLD = ROOT / "textinv_core" / "toyworld"
MODEL = ["--model", f"{WORLD}/toyworld.safetensors", "--model-config", f"{WORLD}"]
GOOD = [*MODEL, "--images", f"{WORLD}/pictures", "--name", "tom", "--width", "64", "--height", "64"]
NO_FILE, NO_FOLDER = "there is no such file", "there is no such folder"

# What was typed, the exit status, and words that must be there; all that begins with - is typed behind a good `train`.
USAGE = [
    # Commands and flags
    ("fly", 2, ["Unknown command", "fly"]),
    ("trian", 2, ["Did you mean", "train"]),
    ("--steps 5 train", 2, ["Try: textinv"]),
    ("train --stesp 5", 2, ["Did you mean --steps?", "Try: textinv train --help"]),
    ("train --nmae tom", 2, ["Did you mean --name?"]),
    ("train --steps", 2, ["--steps", "requires an argument"]),
    ("train --model", 2, ["--model"]),
    ("train a.toml b.toml", 2, ["b.toml"]),
    ("train --plot=maybe", 2, ["--plot"]),
    ("apply", 2, ["PROMPTS"]),
    ("apply x", 2, ["--model"]),
    ("apply x --model m --count 2.5", 2, ["--count", "'2.5' is no whole number"]),
    ("apply x --model m --count 0", 2, ["--count"]),
    ("apply x --model m --count 1000000", 2, ["--count", "1024"]),
    ("apply x --model m --steps 100000", 2, ["--steps", "1000"]),
    ("apply x --model m --guidance nan", 2, ["--guidance", "'nan' is no number"]),
    ("apply x --model m --guidance 7,5", 2, ["--guidance", "write 7.5"]),
    ("apply x --model m --guidance inf", 2, ["--guidance"]),
    ("apply x --model m --seed -1", 2, ["--seed"]),
    ("apply x --model m --seed 99999999999999999999", 2, ["--seed"]),
    ("apply x --model m --precision fp8", 2, ["--precision", "fp16"]),
    ("inspect", 2, ["FILE"]),
    ("inspect dog.pt cat.pt", 2, ["cat.pt"]),
    ("inspect dog.pt --words 0", 2, ["--words"]),
    ("convert dog.pt", 2, ["OUT"]),
    ("convert --overwrite=maybe dog.pt x.pt", 2, ["--overwrite"]),
    ("demo here", 2, ["here"]),
    ("demo --seed 3", 2, ["--seed"]),
    # Missing
    ("train", 2, ["no model to learn on", "--model", "`model` in a settings file"]),
    ("train --model m.safetensors", 2, ["no folder of pictures", "--images"]),
    ("train --model m.safetensors --images cat", 2, ["The embedding has no name", "--name"]),
    # Values
    ("--name 'my cat'", 2, ["'my cat'", "Try 'my_cat'"]),
    ("--name 7", 2, ["'7'", "my_7"]),
    ("--name con", 2, ["device name"]),
    ("--name ../x", 2, ["'../x'"]),
    ("--steps 0", 2, ["--steps cannot be 0", "1 to 1000000"]),
    ("--steps -5", 2, ["--steps cannot be -5"]),
    ("--steps 1000000000000000000000", 2, ["--steps cannot be 1000000000000000000000", "1 to 1000000"]),
    ("--steps 1e3", 2, ["--steps", "'1e3' is no whole number"]),
    ("--steps 1,000", 2, ["--steps", "'1,000' is no whole number"]),
    ("--steps ''", 2, ["--steps", "is no whole number"]),
    ("--batch-size 100000", 2, ["--batch-size cannot be 100000", "1 to 1024"]),
    ("--batch-size 0", 2, ["--batch-size cannot be 0"]),
    ("--gradient-accumulation 0", 2, ["--gradient-accumulation cannot be 0"]),
    ("--seed -1", 2, ["--seed cannot be -1"]),
    ("--seed 99999999999999999999", 2, ["--seed cannot be", "18446744073709551615"]),
    ("--vectors 76", 2, ["--vectors is 76", "75"]),
    ("--vectors -1", 2, ["--vectors is -1"]),
    ("--vectors 0 --init-text ''", 2, ["--vectors 0", "--init-text cannot be empty"]),
    ("--learning-rate fast", 2, ["learning rate 'fast'", "0.005:100"]),
    ("--learning-rate ''", 2, ["learning rate is empty"]),
    ("--learning-rate 0", 2, ["Nothing would be learnt", "'0'"]),
    ("--learning-rate 0:100,0", 2, ["Nothing would be learnt"]),
    ("--learning-rate 0:900,1 --steps 500", 2, ["Nothing would be learnt"]),
    ("--learning-rate -0.1", 2, ["'-0.1'", "0 or more"]),
    ("--learning-rate nan", 2, ["'nan'", "finite"]),
    ("--learning-rate inf", 2, ["'inf'", "finite"]),
    ("--learning-rate 0,005", 2, ["if a decimal point was meant, write '0.005'"]),
    ("--learning-rate 0,005:100", 2, ["write '0.005:100'"]),
    ("--learning-rate 0.1:10,0.2:5", 2, ["'0.2:5'", "steps must increase"]),
    ("--learning-rate 0.1,0.2", 2, ["'0.2' would never be used"]),
    ("--learning-rate 0.1:x", 2, ["'0.1:x'"]),
    ("--clip-at 0,1", 2, ["--clip-at", "write 0.1"]),
    ("--clip-at 0", 2, ["--clip-at cannot be 0"]),
    ("--clip-at nan", 2, ["--clip-at", "'nan' is no number"]),
    ("--clip-at inf", 2, ["--clip-at"]),
    ("--min-timestep 1000", 2, ["--min-timestep cannot be 1000", "0 to 999"]),
    ("--max-timestep 1001", 2, ["--max-timestep cannot be 1001", "1 to 1000"]),
    ("--min-timestep 500 --max-timestep 400", 2, ["--min-timestep cannot be 500 with --max-timestep 400"]),
    ("--loss-weighting min-snr", 2, ["--loss-weighting cannot be", "none, min_snr", "Did you mean 'min_snr'?"]),
    ("--gradient-clipping on", 2, ["--gradient-clipping cannot be 'on'", "off, norm, value"]),
    ("--gradient-checkpointing true", 2, ["--gradient-checkpointing cannot be 'true'", "auto, on, off"]),
    ("--save-every -1", 2, ["--save-every cannot be -1"]),
    ("--captions txt", 2, ["--captions cannot be 'txt'", "auto, sidecar, filename, none"]),
    ("--resize zoom", 2, ["--resize cannot be 'zoom'", "crop, squash, keep"]),
    ("--filename-word-regex [", 2, ["filename word regex", "'['"]),
    ("--width -3", 2, ["--width", "8 to 8192"]),
    ("--width 7", 2, ["--width cannot be 7", "8 to 8192"]),
    ("--height 1000000", 2, ["--height cannot be 1000000", "8 to 8192"]),
    ("--shuffle wild", 2, ["'wild' for --shuffle", "Use one of off, all"]),
    ("--shuffle-per word", 2, ["--shuffle-per 'word'", "sample, occurrence, batch"]),
    ("--unlock-every 0", 2, ["--unlock-every is 0"]),
    ("--precision fp8", 2, ["--precision cannot be 'fp8'", "auto, fp32, bf16, fp16"]),
    ("--preset stile", 2, ["--preset cannot be 'stile'", "Did you mean 'style'?"]),
    ("--template stile", 2, ["--template cannot be 'stile'", "Did you mean 'style'?"]),
    ("--template custom", 2, ["--template cannot be 'custom'", "lines of your own"]),
    ("--template ''", 2, ["--template cannot be ''"]),
    ("--template 'a [name]' --template no", 2, ["'no' does not say [name]"]),
    ("--template none --captions none", 2, ["--captions is none", "--template"]),
    # Paths
    ("--model nowhere", 2, ["--model is 'nowhere'", "no such file or folder"]),
    ("--model cat.txt", 2, ["--model is 'cat.txt'", "end in .safetensors"]),
    ("--model empty.safetensors", 2, ["--model is 'empty.safetensors'", "empty"]),
    ("--model folder", 2, ["--model is 'folder'", "leave out --model-config"]),
    ("--model-config nowhere", 2, ["--model-config is 'nowhere'", NO_FOLDER]),
    ("--model-config cat.txt", 2, ["--model-config is 'cat.txt'", "that is a file"]),
    ("--model-config folder", 2, ["--model-config is 'folder'", "unet/config.json"]),
    ("train --model folder --images folder --name tom", 2, ["--model is 'folder'", "model_index.json"]),
    ("--images nowhere", 2, ["--images is 'nowhere'", NO_FOLDER]),
    ("--images cat.txt", 2, ["--images is 'cat.txt'", "that is a file"]),
    ("--from nowhere.pt", 2, ["--from is 'nowhere.pt'", NO_FILE]),
    ("--from folder", 2, ["--from is 'folder'", "that is a folder"]),
    ("--embedding nowhere.pt", 2, ["--embedding is 'nowhere.pt'", NO_FILE]),
    ("--embedding folder", 2, ["--embedding is 'folder'", "that is a folder"]),
    ("--output cat.txt", 2, ["--output is 'cat.txt", "is a file"]),
    ("--output cat.txt/deeper", 2, ["--output is", "cat.txt' is a file"]),
    ("--output taken", 2, ["--output is 'taken'", "taken/textual_inversion' is a file"]),
    ("train nowhere.toml", 2, ["no settings file 'nowhere.toml'"]),
    ("train folder", 2, ["'folder' is a folder, not a settings file", "--images"]),
    ("inspect nowhere.pt", 2, ["FILE is 'nowhere.pt'", NO_FILE]),
    ("inspect folder", 2, ["FILE is 'folder'", "that is a folder"]),
    ("inspect dog.pt --model nowhere", 2, ["--model is 'nowhere'"]),
    ("convert nowhere.pt x.pt", 2, ["FILE is 'nowhere.pt'", NO_FILE]),
    ("convert folder x.pt", 2, ["FILE is 'folder'", "that is a folder"]),
    ("convert dog.pt nowhere/x.pt", 2, ["no folder 'nowhere'", "'x.pt'", "Make it first"]),
    ("convert dog.pt x.png --picture nowhere.png", 2, ["--picture is 'nowhere.png'", NO_FILE]),
    ("apply x --model nowhere", 2, ["--model is 'nowhere'"]),
    ("apply x --model cat.txt", 2, ["end in .safetensors"]),
    ("apply x {model} --embedding nowhere.pt", 2, ["--embedding is 'nowhere.pt'", NO_FILE]),
    ("apply x {model} --out cat.txt", 2, ["--out is 'cat.txt'", "is a file"]),
    ("apply x {model} --width 100", 2, ["100x0", "--width", "multiples of 8"]),
    ("apply x {model} --height 100000", 2, ["0x100000", "8 to 8192"]),
    ("apply x {model} --width -8", 2, ["--width"]),
]

# The same, for what only the core can tell.
FILES = [
    ("--from bad.safetensors", 2, ["'bad.safetensors' cannot be read"]),
    ("--from cat.txt", 2, ["'cat.txt' is no embedding file"]),
    ("--from cat.safetensors --steps 10", 2, ["step 10 of 10", "set --steps to more than 10"]),
    ("--from cat.safetensors --learning-rate 0.1:9", 2, ["ends by step 10"]),
    ("--from cat.safetensors --learning-rate 0.1:10,0", 2, ["Nothing would be learnt"]),
    ("--from cat.safetensors --name 'my cat'", 2, ["'my cat'"]),
    ("--embedding bad.safetensors", 2, ["'bad.safetensors' cannot be read"]),
    ("--embedding cat.safetensors --embedding other/cat.safetensors", 2, ["Two of the embeddings are called 'cat'"]),
    ("--embedding cat.safetensors --name cat", 2, ["--embedding are both called 'cat'", "--name"]),
    ("--images folder", 2, ["'folder' has no pictures", "Put the pictures"]),
    ("--images deep", 2, ["'deep' has no pictures", "switch --recursive on"]),
    ("--images broken", 2, ["None of the pictures", "a.png"]),
    ("--images captioned --template none", 2, ["no prompt of this training names the embedding"]),
    ("apply x {model} --embedding bad.safetensors", 2, ["'bad.safetensors' cannot be read"]),
    ("apply embedding:dgo {model} --embedding dog.pt", 2, ["'dgo'", "given: dog"]),
    ("inspect bad.safetensors", 1, ["'bad.safetensors' cannot be read"]),
    ("inspect cat.txt", 1, ["'cat.txt' is no embedding file"]),
    ("convert dog.pt dog.pt", 2, ["a file dog.pt already", "--overwrite"]),
    ("convert dog.pt x.doc", 2, ["'x.doc' is no embedding file"]),
    ("convert dog.pt 'my dog.pt'", 2, ["Try 'my_dog'"]),
    ("convert dog.pt x.png", 2, ["--picture"]),
    ("convert dog.pt folder --overwrite", 2, ["'folder'", "that is a folder"]),
    ("convert dog.pt x.png --picture cat.txt", 1, ["'cat.txt'", "not a picture"]),
    ("demo --out cat.txt", 2, ["--out is 'cat.txt'", "is a file"]),
]

# Lines below a good file's top, and words.
TOML = [
    ("vectors = ", ["as TOML", "line"]),
    ("clip_at = 0,1", ["as TOML", "line", "If a decimal point was meant, write 0.1."]),
    ("stpes = 5", ["'stpes'", "means nothing"]),
    ("steps = 5", ["'steps'", "It belongs into [train]."]),
    ("learning-rate = 5", ["'learning-rate'", "It belongs into [train], as 'learning_rate'."]),
    ("shuffle = 'all'", ["'shuffle' is a table: write [shuffle]", "mode"]),
    ("train = 5", ["'train' is a table: write [train]"]),
    ("template = []", ["template is empty"]),
    ("template = 'stile'", ["template cannot be 'stile'", "Did you mean 'style'?"]),
    ("preset = 'sbject'", ["preset cannot be 'sbject'", "Did you mean 'subject'?"]),
    ("vectors = '2'", ["'vectors' is '2'; it must be a whole number"]),
    ("vectors = 99", ["vectors is 99"]),
    ("[trian]\nsteps = 5", ["a table [trian]", "Did you mean 'train'?"]),
    ("[zzz]\nsteps = 5", ["a table [zzz]", "There are [images], [train], [shuffle], [preview] and [[job]]"]),
    ("[shuffle]\nshuffle = 'all'", ["'shuffle' in [shuffle]", "Did you mean 'mode'?"]),
    ("[shuffle]\nmode = 'wild'", ["'wild' for mode in [shuffle]"]),
    ("[train]\nstep = 5", ["'step' in [train]", "Did you mean 'steps'?"]),
    ("[train]\nsteps = 1e3", ["'steps' in [train] is 1000.0; it must be a whole number"]),
    ("[train]\nsteps = 10000000000000000000000", ["steps"]),
    ("[train]\nclip_at = '0,1'", ["If a decimal point was meant, write 0.1."]),
    ("[train]\nclip_at = nan", ["clip_at in [train] cannot be nan"]),
    ("[train]\nlearning_rate = '0,005'", ["write '0.005'"]),
    ("[train]\nlearning_rate = 0", ["Nothing would be learnt"]),
    ("[train]\nlearning_rate = -1", ["'-1'"]),
    ("[train]\nlearning_rate = [0.1]", ["'learning_rate' in [train] is [0.1]; it must be a text"]),
    ("[train]\nloss_weighting = 'min-snr'", ["loss_weighting in [train] cannot be", "Did you mean 'min_snr'?"]),
    ("[train]\nmin_timestep = 900\nmax_timestep = 100", ["min_timestep in [train] cannot be 900 with max_timestep in"]),
    ("[train]\nsteps = 5\n[train]\nsteps = 6", ["as TOML", "line"]),
    ("[[train]]\nsteps = 5", ["write [train]"]),
    ("[job]\nname = 'a'", ["begin each with [[job]]"]),
    ("[[job]]\nnmae = 'a'", ["Job 1", "'nmae'", "Did you mean 'name'?"]),
    ("[[job]]\nname = 'a'\n[[job]]\nname = 'A'", ["Several jobs are called 'a'"]),
    ("[[job]]\nname = 'a'\n[[job]]\nname = 'b'\ntrain.steps = 0", ["Job 2 ('b')", "steps in [train] cannot be 0"]),
    ("[[job]]\nname = 'a'\n[[job]]\nname = 'b'\noutput = 'c'", ["share one output folder"]),
    ("[[job]]\nname = ''\nfrom = 'cat.safetensors'", ["Job 1 has no name"]),
    ("[[job]]\nname = 'a'\n[[job]]\nname = 'b'\nimages = 'nowhere'", ["Job 'b': folder in [images] is 'nowhere'"]),
    ("[[job]]\nname = 'a'\n[[job]]\nname = 'b'\nfrom = 'bad.safetensors'", ["Job 'b': 'bad.safetensors' cannot be"]),
    ("[[job]]\nname = 'a'\nembedding = ['cat.pt']\n[[job]]\nname = 'b'\nmodel = 'm'", ["Job 'a'", "Job 'b': model is"]),
]


def typed(line):
    words = shlex.split(line)
    at = words.index("{model}") if "{model}" in words else None
    words = words if at is None else [*words[:at], *MODEL, *words[at + 1 :]]
    return ["train", *GOOD, *words] if line.startswith("--") and "train" not in words else words


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with things to take for others."""
    desk = tmp_path_factory.mktemp("desk")
    for folder in ("folder", "deep/inner", "broken", "captioned", "other", "taken"):
        (desk / folder).mkdir(parents=True)
    (desk / "cat.txt").write_text("a cat")
    (desk / "taken" / "textual_inversion").write_text("")
    (desk / "empty.safetensors").write_bytes(b"")
    (desk / "bad.safetensors").write_bytes(b"no" * 50)
    (desk / "broken" / "a.png").write_bytes(b"no")
    for folder in ("deep/inner", "captioned"):
        shutil.copy(next((WORLD / "pictures").glob("*.png")), desk / folder / "0.png")
    embedding = Embedding("cat", {"clip_l": torch.ones(1, 96)}, 10)
    save_embedding(embedding, desk / "cat.safetensors")
    save_embedding(embedding, desk / "other" / "cat.safetensors")
    save_embedding(Embedding("dog", {"clip_l": torch.ones(1, 768)}, 10), desk / "dog.pt")
    return desk


@pytest.fixture
def at_the_desk(desk, monkeypatch):
    """There, with every model out of reach; afterwards it looks as before."""
    monkeypatch.chdir(desk)
    monkeypatch.setattr(inputs, "_load_model", lambda *_: pytest.fail("a model is loaded"))
    before = sorted(desk.rglob("*"))
    yield desk
    assert sorted(desk.rglob("*")) == before, "something was left behind"


def check(done, code, words):
    assert done.code == code, done.err
    assert "Traceback" not in done.err and "Errno" not in done.err
    for word in words:
        assert word in done.err
    if done.out:  # as --json has it
        [facts] = done.facts
        assert (facts["event"], facts["exit_code"]) == ("error", code)
        assert all(word in facts["message"] for word in words)


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(("line", "code", "words"), [*USAGE, *FILES])
def test_a_mistake_is_a_sentence(textinv, at_the_desk, line, code, words, as_json):
    done = textinv(*typed(line), *["--json"] * as_json)
    check(done, code, words)
    assert bool(done.out) == as_json


@pytest.mark.parametrize(("lines", "words"), TOML)
def test_a_mistake_in_a_file_is_a_sentence(textinv, at_the_desk, tmp_path, lines, words):
    settings = {"model": MODEL[1], "model_config": MODEL[3], "name": "tom"}
    top = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items() if f"{key} =" not in lines[:12])
    file = tmp_path / "tom.toml"
    images = f"images.folder = {json.dumps(str(WORLD / 'pictures'))}\n"
    file.write_text(f"{top}{images}{lines}\n")
    check(textinv("train", file), 2, words)


def test_mistakes_are_seen_without_torch(desk, tmp_path):
    """Which takes seconds to load."""
    (tmp_path / "lines.json").write_text(json.dumps([typed(line) for line, *_ in USAGE]))
    code = """
import json, sys
sys.modules["torch"] = None
from textinv_core.commands import run
codes = []
for words in json.load(open(sys.argv[1])):
    try:
        run(words)
    except SystemExit as ended:
        codes.append(ended.code)
print(json.dumps(codes))
"""
    process = [sys.executable, "-c", code, str(tmp_path / "lines.json")]
    done = subprocess.run(process, env=environment(), cwd=desk, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == [code for _, code, _ in USAGE]


def test_there_are_many_of_them():
    lines = [line for line, *_ in (*USAGE, *FILES, *TOML)]
    assert len(lines) == len(set(lines)) >= 110
