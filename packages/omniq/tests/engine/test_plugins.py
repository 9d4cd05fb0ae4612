"""Plugins: found when they are needed, each on its own, and free of charge where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from omniq.plugins import Hooks
from omniq_core.hooks import hookimpl


def install(folder: Path, name: str, code: str) -> None:
    """A distribution with one plugin, as an installer would leave it."""
    (folder / f"{name}_plugin.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[omniq.plugins]\n{name} = {name}_plugin\n")


def test_a_broken_plugin_is_reported_and_the_others_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(
        tmp_path,
        "goodone",
        "from omniq_core.hooks import hookimpl\n@hookimpl\ndef omniq_doctor_lines(): return ['ok']\n",
    )
    install(tmp_path, "badone", "raise RuntimeError('this is broken')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    hooks = Hooks()
    assert ["ok"] in hooks.call("omniq_doctor_lines")
    assert "this is broken" in hooks.broken["badone:badone"]
    assert "badone" in caplog.text


def test_a_hook_that_nobody_implements_has_no_caller() -> None:
    hooks = Hooks(discover=False)
    assert hooks.caller("omniq_tasks_claimed") is None
    assert hooks.call("omniq_tasks_claimed", claims=[], worker_id="") == []


def test_a_plugin_that_is_registered_and_taken_back_is_called_in_between() -> None:
    class Plugin:
        @hookimpl
        def omniq_doctor_lines(self) -> list[str]:
            return ["here"]

    hooks, plugin = Hooks(discover=False), Plugin()
    hooks.register(plugin)
    assert hooks.call("omniq_doctor_lines") == [["here"]]
    hooks.unregister(plugin)
    hooks.unregister(plugin)
    assert hooks.caller("omniq_doctor_lines") is None


def test_only_the_hook_that_may_refuse_lets_its_exception_through(caplog: pytest.LogCaptureFixture) -> None:
    class Plugin:
        @hookimpl
        def omniq_configure(self, settings: Any) -> None:
            raise ValueError("refused")

        @hookimpl
        def omniq_backend_opened(self, backend: Any) -> None:
            raise ValueError("broken")

    hooks = Hooks(discover=False)
    hooks.register(Plugin())
    with pytest.raises(ValueError, match="refused"):
        hooks.call("omniq_configure", settings=None)
    assert hooks.call("omniq_backend_opened", backend=None) == []
    assert "broken" in caplog.text


def test_no_plugin_is_looked_for_on_import() -> None:
    code = "import sys, omniq.plugins; assert 'pluggy' not in sys.modules, 'imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
