import sys

import pytest
from conftest import ROOT, run

import list_interfaces
import prepare_dataset
import run_embedding
import run_finetune
from atomica_hf import StructureError
from script_arguments import run_script


NEEDED = {
    prepare_dataset: ["molecules.smi", "--output_dir", "new"],
    run_embedding: ["--model_name_or_path", "m", "--input_file", "f", "--output_file", "o"],
    run_finetune: ["--train_file", "f", "--output_dir", "new"],
    list_interfaces: ["complex.pdb"],
}


@pytest.mark.parametrize("script", NEEDED, ids=lambda script: script.__name__)
def test_words_that_no_option_takes_end_the_script(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main([*NEEDED[script], "--nonsense", "1"])
    assert stopped.value.code == 2 and "error: not understood: --nonsense 1 (see --help)" in capsys.readouterr().err


def test_inputs_after_the_options_end_the_script(capsys):
    with pytest.raises(SystemExit):
        prepare_dataset.main(["molecules.smi", "--output_dir", "new", "--num_proc", "1", "other.smi"])
    assert "error: not understood: other.smi" in capsys.readouterr().err


def test_help_names_each_option_once_and_keeps_the_lines_of_the_description():
    done = run("list_interfaces.py", "--help")
    assert "\npython list_interfaces.py folder --output_file index.csv\n" in done.stdout
    assert "--output_file" in done.stdout and "--output-file" not in done.stdout


@pytest.mark.parametrize(
    "error, said",
    [
        (StructureError("bad", "m.smi: no molecule"), "train.py: error: m.smi: no molecule"),
        (FileNotFoundError(2, "No such file", "m.smi"), "train.py: error: [Errno 2] No such file: 'm.smi'"),
        (KeyError("for the user"), "train.py: error: 'for the user'"),
        (KeyboardInterrupt(), "train.py: stopped; go on."),
        (SystemExit(2), 2),
    ],
)
def test_a_script_ends_with_one_line(error, said, monkeypatch):
    def main():
        raise error

    monkeypatch.setattr(sys, "argv", ["somewhere/train.py"])
    with pytest.raises(SystemExit) as end:
        run_script(main, KeyError, stopped="stopped; go on.")
    assert end.value.code == said


def test_a_mistake_of_the_script_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: 1 / 0)


def test_every_script_ends_so():
    texts = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("*.py")}
    scripts = {name for name, text in texts.items() if 'if __name__ == "__main__":' in text}
    assert "run_pretraining.py" in scripts and not {name for name in scripts if "\n    run_script(" not in texts[name]}
