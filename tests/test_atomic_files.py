import pytest

from atomic_files import replacing, write_text


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    write_text(tmp_path / "a.txt", "\u00e9")
    with pytest.raises(ValueError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise ValueError
    assert (tmp_path / "a.txt").read_bytes() == "\u00e9".encode() and len(list(tmp_path.iterdir())) == 1
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".txt" and (tmp_path / "a.txt").read_text(encoding="utf-8") == "\u00e9"
    assert (tmp_path / "a.txt").read_text() == "new"
