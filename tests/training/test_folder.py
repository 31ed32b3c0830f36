"""The folder of a run: its losses, and where things are."""

from datetime import datetime

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.fakes import fake_embedding
from textinv_core.training.folder import CSV_HEADER, LossRow, RunFolder

CSV = "textual_inversion_loss.csv"
ROWS = [LossRow(step, (step - 1) // 3, (step - 1) % 3, 1 / step, 0.002) for step in range(1, 8)]


def test_new_run_folders_are_never_used_twice(tmp_path):
    now = datetime(2026, 3, 4, 5, 6, 7)
    root = tmp_path / "out" / "textual_inversion"
    made = []
    for _ in range(12):
        folder = RunFolder.new(root, "cat", now)
        assert folder.path.is_dir() and not list(folder.path.iterdir())
        (folder.path / "settings.json").touch()
        made.append(folder)
    assert [folder.path.name for folder in made] == ["2026-03-04_05-06-07"] + [
        f"2026-03-04_05-06-07_{n}" for n in range(2, 13)
    ]
    assert {folder.path.parent for folder in made} == {root / "cat"}
    assert RunFolder.new(root, "dog", now) == RunFolder(root / "dog" / "2026-03-04_05-06-07")


def test_a_new_run_folder_is_called_after_the_time(tmp_path):
    before = datetime.now().replace(microsecond=0)
    folder = RunFolder.new(tmp_path, "cat")
    assert before <= datetime.strptime(folder.path.name, "%Y-%m-%d_%H-%M-%S") <= datetime.now()


# Losses


def test_losses_are_appended_as_they_come(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.losses() == []
    folder.append_losses(ROWS[:2])
    before = (tmp_path / CSV).read_bytes()
    folder.append_losses(ROWS[2:3])
    after = (tmp_path / CSV).read_bytes()
    assert after.startswith(before) and len(after) - len(before) == len(str(ROWS[2]))
    assert after.decode() == CSV_HEADER + "1,0,0,1.0000000,0.002\n2,0,1,0.5000000,0.002\n3,0,2,0.3333333,0.002\n"
    assert [row.step for row in folder.losses()] == [1, 2, 3]


def test_rows_there_is_no_room_for_leave_no_trace(tmp_path):
    resource = pytest.importorskip("resource")
    folder = RunFolder(tmp_path)
    folder.append_losses(ROWS[:2])
    written = (tmp_path / CSV).read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(written) + 10, before[1]))
    try:
        with pytest.raises(OSError):
            folder.append_losses(ROWS[2:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / CSV).read_bytes() == written
    folder.append_losses(ROWS[2:])
    assert (tmp_path / CSV).read_bytes() == written + "".join(map(str, ROWS[2:])).encode()


@pytest.mark.parametrize("step", [0, 1, 4, 7, 99])
def test_losses_are_cut_back_to_a_step(tmp_path, step):
    folder = RunFolder(tmp_path)
    folder.append_losses(ROWS)
    folder.cut_losses(step)
    assert [row.step for row in folder.losses()] == [row.step for row in ROWS if row.step <= step]
    folder.append_losses(ROWS[step:])
    assert (tmp_path / CSV).read_text() == CSV_HEADER + "".join(map(str, ROWS))


@given(st.integers(0, 400))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_that_broke_off_anywhere_is_read_as_far_as_it_is_whole(tmp_path, length):
    folder = RunFolder(tmp_path)
    whole = (CSV_HEADER + "".join(map(str, ROWS))).encode()
    (tmp_path / CSV).write_bytes(whole[:length])
    lines = max(whole[:length].count(b"\n") - 1, 0)
    assert [row.step for row in folder.losses()] == list(range(1, lines + 1))
    folder.cut_losses(99)
    folder.append_losses(ROWS[lines:])
    assert (tmp_path / CSV).read_bytes() == whole


# Copies


def test_losses_that_another_program_has_saved_are_read(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_losses(ROWS)
    (tmp_path / CSV).write_bytes((tmp_path / CSV).read_bytes().replace(b"\n", b"\r\n"))
    assert [row.step for row in folder.losses()] == [row.step for row in ROWS]
    folder.cut_losses(3)
    assert (tmp_path / CSV).read_bytes().decode() == CSV_HEADER + "".join(map(str, ROWS[:3]))


def test_the_newest_copy_is_the_one_that_was_written_last(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.newest() is None
    for step in (5, 30, 7):
        path = folder.save(fake_embedding(step=step))
        assert path.name == f"cat-{step}.safetensors" and folder.newest() == path


def test_of_copies_the_newest_are_kept_and_those_that_others_made(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (10, 20, 25, 30, 40, 50, 100):
        folder.save(fake_embedding(step=step))
    folder.prune(10, 2, {20})
    assert sorted(path.name for path in (tmp_path / "embeddings").iterdir()) == sorted(
        f"cat-{step}.safetensors" for step in (20, 25, 50, 100)
    )


def test_what_turned_out_to_be_no_good_is_taken_back(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (9, 10, 11):
        folder.save(fake_embedding(step=step))
        folder.save_preview(torch.zeros(64, 64, 3), fake_embedding(step=step), {})
        folder.save_image_embedding(torch.zeros(64, 64, 3), fake_embedding(step=step))
    folder.withdraw(10)
    left = {path.stem for path in tmp_path.rglob("*.*") if path.is_file()}
    assert left == {"cat-9", "cat-10"} and len([*tmp_path.rglob("*.*")]) == 6


def test_fixed_losses_come_back_to_the_bit_and_are_rewound(tmp_path):
    folder = RunFolder(tmp_path)
    folder.rewind(3)
    assert folder.fixed_losses() == []
    rows = [(0, 0.1 + 0.2), (25, 1 / 3), (50, 1e-9)]
    folder.write_fixed_losses(rows)
    assert folder.fixed_losses() == rows
    folder.rewind(25)
    assert folder.fixed_losses() == rows[:2]


@pytest.mark.parametrize("text", ["", "step,loss\n1,0.5\n2", "step,loss\n1,low\n", "step,loss\n1,2,3\n", "\0"])
def test_what_is_no_file_of_fixed_losses_has_none(tmp_path, text):
    (tmp_path / "fixed_loss.csv").write_text(text)
    assert RunFolder(tmp_path).fixed_losses() == []
