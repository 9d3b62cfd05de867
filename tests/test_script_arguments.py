import pytest
from conftest import run

import list_interfaces
import prepare_dataset
import run_embedding
import run_finetune


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
