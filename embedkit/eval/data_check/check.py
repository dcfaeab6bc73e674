"""One call for every kind of folder."""

from __future__ import annotations

from pathlib import Path

from embedkit.errors import UsageError
from embedkit.eval.data_check.beir import check_beir
from embedkit.eval.data_check.findings import Finding, Findings
from embedkit.eval.data_check.tables import check_tables
from embedkit.eval.local_tasks import is_beir


def check_data(path: str | Path) -> list[Finding]:
    """What is wrong with a BEIR folder, a folder of such, or a file or folder of another kind that `embedkit eval --data` takes.

    Every file is read as a stream; what is remembered is some 40 bytes a row. Texts that stand in train and in another split are
    found by `near_duplicates`. Raises UsageError for what holds no task, DataError for a damaged archive.
    """
    folder, findings = Path(path), Findings()
    if not folder.exists():
        raise UsageError(f"{path} is not there; expected a folder or file that embedkit eval --data takes.")
    if is_beir(folder):
        check_beir(folder, "", findings)
    elif inner := [one for one in sorted(folder.iterdir()) if is_beir(one)] if folder.is_dir() else []:
        for one in inner:
            check_beir(one, f"{one.name}/", findings)
    else:
        check_tables(folder, findings)
    return findings.found()
