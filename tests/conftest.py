"""Every test runs alone with its data: no user's folders, no terminal's settings, one thread per worker."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded: workers are processes already
for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "GITHUB_ACTIONS", "HF_TOKEN"):
    os.environ.pop(name, None)
_HOME = tempfile.mkdtemp(prefix="llm-plan-tests-")
for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME", "LLM_PLAN_CONFIG_DIR"):
    os.environ[name] = os.path.join(_HOME, name.lower())


def pytest_sessionfinish() -> None:
    """Leave nothing behind."""
    import shutil

    shutil.rmtree(_HOME, ignore_errors=True)
