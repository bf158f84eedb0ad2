"""The script for SLURM in docs/experiments.md, with a program in the place of SLURM that runs everything at once."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "experiments.md"
JOBS = """kslottery job 'runs/my five' es.corpus  # level 1
kslottery job 'runs/my five' es.0.embed  # level 2
kslottery job 'runs/my five' es.untuned  # level 2
kslottery job 'runs/my five' es.0.partial@4:lr=0.01  # level 3
kslottery report 'runs/my five'  # level 4
"""
KSLOTTERY = """#!/bin/bash
if [ "$1" = compare ]; then cat "$LOGS/jobs"; exit; fi
printf '%s|' "$@" >> "$LOGS/log"; echo >> "$LOGS/log"
if [[ "$*" == *untuned* ]]; then exit 75; fi
"""
SBATCH = """#!/bin/bash
while [ $# -gt 0 ]; do
    case "$1" in
        --dependency=*) echo "$1" >> "$LOGS/log" ;;
        --array=1-*) tasks=${1#--array=1-} ;;
        --wrap) wrap=$2; shift ;;
    esac
    shift
done
for ((task = 1; task <= tasks; task++)); do
    SLURM_ARRAY_TASK_ID=$task /bin/sh -c "$wrap"; echo "exit code $?" >> "$LOGS/log"
done
echo x >> "$LOGS/ids"; wc -l < "$LOGS/ids"
"""


def test_the_script_for_slurm_runs_each_level_after_the_one_before_and_passes_exit_codes_on(tmp_path):
    (script,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    programs = {"kslottery": KSLOTTERY, "sbatch": SBATCH}
    for name, text in programs.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "jobs").write_text(JOBS)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "LOGS": str(tmp_path)}
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "log").read_text().splitlines() == [
        *("job|runs/my five|es.corpus|", "exit code 0", "--dependency=afterok:1"),
        *("job|runs/my five|es.0.embed|", "exit code 0", "job|runs/my five|es.untuned|", "exit code 75"),
        *("--dependency=afterok:2", "job|runs/my five|es.0.partial@4:lr=0.01|", "exit code 0"),
        *("--dependency=afterok:3", "report|runs/my five|", "exit code 0"),
    ]
