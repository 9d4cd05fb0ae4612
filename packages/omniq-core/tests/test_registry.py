"""Finding plugins by name, among real and among faked distributions on a path of this test."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from omniq_core import (
    BACKENDS,
    BrokenPlugin,
    ContractSkew,
    DuplicateProviders,
    MissingLibrary,
    NotInstalled,
    Registry,
    UnknownPlugin,
    backend_class,
)

Install = Callable[..., None]

WORKING = """
from omniq_core import Backend, BackendOptions

class AcmeOptions(BackendOptions, frozen=True, kw_only=True):
    level: int = 1

class AcmeBackend(Backend):
    name = "acme"
    spi_version = {version}
    options_type = AcmeOptions

    async def open(self): ...
    async def close(self): ...
    def queue(self): ...
    def classify(self, error): ...
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution with one backend on the path: its metadata and, unless it is ``None``, its module."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    modules: list[str] = []

    def install(
        distribution: str, name: str, module: str, code: str | None, attribute: str = "AcmeBackend"
    ) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[omniq.backends]\n{name} = {module}:{attribute}\n")
        if code is not None:
            (tmp_path / f"{module}.py").write_text(code)
        modules.append(module)
        importlib.invalidate_caches()
        BACKENDS.refresh()

    yield install
    for module in modules:
        sys.modules.pop(module, None)
    monkeypatch.undo()
    importlib.invalidate_caches()
    BACKENDS.refresh()


def test_a_plugin_is_found_by_the_name_of_its_entry_point(install: Install) -> None:
    install("acme-omniq", "acme", "acme_omniq", WORKING.format(version=(0, 1)))
    assert "acme" in BACKENDS.names()
    assert "acme_omniq" not in sys.modules  # listing imports nothing
    [info] = [info for info in BACKENDS if info.name == "acme"]
    assert str(info) == "acme-omniq 1.5 (acme_omniq:AcmeBackend)"
    assert "acme_omniq" not in sys.modules
    cls = backend_class("acme")
    assert cls.name == "acme"
    assert backend_class("acme") is backend_class("Acme_OmniQ:acme") is cls


def test_two_distributions_of_one_name_are_refused_unless_one_is_chosen(install: Install) -> None:
    install("acme-omniq", "acme", "acme_one", WORKING.format(version=(0, 1)))
    install("other-acme", "acme", "acme_two", WORKING.format(version=(0, 1)))
    with pytest.raises(DuplicateProviders) as raised:
        backend_class("acme")
    for part in (
        "backend 'acme' is provided by 2 installed distributions",
        "acme-omniq 1.5 (acme_one:AcmeBackend)",
        "other-acme 1.5 (acme_two:AcmeBackend)",
        "'DISTRIBUTION:acme'",
        "[OMQ-P005]",
    ):
        assert part in str(raised.value)
    assert backend_class("other-acme:acme").__module__ == "acme_two"


def test_a_plugin_that_raises_on_import_is_named_and_disturbs_no_other(install: Install) -> None:
    install("acme-omniq", "acme", "acme_broken", "raise RuntimeError('half finished')")
    install("good-omniq", "good", "acme_good", WORKING.format(version=(0, 1)))
    with pytest.raises(
        BrokenPlugin,
        match=r"backend 'acme' from acme-omniq 1.5 \(acme_broken:AcmeBackend\) cannot be imported: RuntimeError: "
        r"half finished. Other backends are not affected; report it to the authors of acme-omniq \[OMQ-P004\]",
    ) as raised:
        backend_class("acme")
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert backend_class("good")


def test_a_missing_client_library_is_told_from_missing_code(install: Install) -> None:
    install("acme-omniq", "acme", "acme_needy", "import no_such_client.pool")
    with pytest.raises(
        MissingLibrary,
        match=r"needs the module 'no_such_client', which is not installed. Try: pip install --upgrade acme-omniq",
    ):
        backend_class("acme")
    install("ghost-omniq", "ghost", "acme_ghost", None)
    with pytest.raises(
        BrokenPlugin,
        match="installed but its code is gone; try: pip install --force-reinstall --no-deps ghost-omniq",
    ):
        backend_class("ghost")
    install("empty-omniq", "empty", "acme_empty", "")
    with pytest.raises(BrokenPlugin, match="has no attribute 'AcmeBackend'"):
        backend_class("empty")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("AcmeBackend = 3", "must be a subclass of omniq_core.Backend, got 3"),
        ("class AcmeBackend: ...", "must be a subclass of omniq_core.Backend"),
        (
            "from omniq_core import Backend\nclass AcmeBackend(Backend):\n    name = 'acme'\n",
            "lacks spi_version, options_type, classify, close, open, queue",
        ),
    ],
)
def test_what_is_no_backend_is_refused(install: Install, code: str, message: str) -> None:
    install("acme-omniq", "acme", "acme_wrong", code)
    with pytest.raises(BrokenPlugin, match=message):
        backend_class("acme")


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        ((0, 2), "Install a newer omniq-core, or an older release of the plugin"),
        ((1, 0), "Install a newer omniq-core, or an older release of the plugin"),
        ((0, 0), "Install a newer release of the plugin"),
    ],
)
def test_a_plugin_of_another_contract_is_refused(
    install: Install, version: tuple[int, int], advice: str
) -> None:
    install("acme-omniq", "acme", "acme_skewed", WORKING.format(version=version))
    with pytest.raises(
        ContractSkew, match=f"was built for contract {version[0]}.{version[1]}, but .* {advice}"
    ):
        backend_class("acme")


def test_a_backend_of_ours_that_is_not_there_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKENDS, "_found", {})
    monkeypatch.setattr(BACKENDS, "_loaded", {})
    for name, extra in (("postgres", "omniq[postgres]"), ("rediss", "omniq[redis]"), ("s3", "omniq[s3]")):
        with pytest.raises(NotInstalled) as raised:
            backend_class(name)
        assert str(raised.value) == (
            f'no backend named {name!r}; installed here: none. Install it with: pip install "{extra}" [OMQ-P001]'
        )


def test_a_typo_gets_a_suggestion_and_nonsense_a_list() -> None:
    with pytest.raises(
        UnknownPlugin, match=r"no backend named 'postgress'; installed here: .*Did you mean 'postgres'\?"
    ):
        backend_class("postgress")
    with pytest.raises(
        UnknownPlugin, match=r"no backend named 'qqqqqq'; installed here: .*memory, "
    ) as raised:
        backend_class("qqqqqq")
    assert "Did you mean" not in str(raised.value)


def test_a_program_may_offer_a_plugin_of_its_own() -> None:
    registry: Registry[object] = Registry("omniq.nothing", "thing")
    first, second = object(), object()
    registry.register("mine", first)
    registry.register("mine", first)
    assert registry.load("mine") is first
    assert (registry.names(), registry.info("mine")) == (["mine"], None)
    with pytest.raises(DuplicateProviders, match="thing 'mine' is registered already"):
        registry.register("mine", second)
    registry.unregister("mine")
    registry.unregister("mine")
    with pytest.raises(UnknownPlugin, match="no thing named 'mine'; installed here: none"):
        registry.load("mine")


def test_a_program_cannot_take_the_name_of_an_installed_plugin() -> None:
    with pytest.raises(
        DuplicateProviders,
        match=r"backend 'memory' is provided by omniq-memory .*register yours under another",
    ):
        BACKENDS.register("memory", object)  # type: ignore[arg-type]


def test_a_distribution_that_is_seen_twice_counts_once(install: Install, tmp_path: Path) -> None:
    install("acme-omniq", "acme", "acme_twice", WORKING.format(version=(0, 1)))
    copy = tmp_path / "copy"
    copy.mkdir()
    (tmp_path / "acme_omniq-1.5.dist-info").rename(copy / "acme_omniq-1.5.dist-info")
    install("acme-omniq", "acme", "acme_twice", None)
    sys.path.append(str(copy))
    BACKENDS.refresh()
    assert backend_class("acme")


def test_a_release_that_another_one_hides_offers_nothing(install: Install, tmp_path: Path) -> None:
    install("acme-omniq", "acme", "acme_hidden", WORKING.format(version=(0, 1)))
    older = tmp_path / "older"
    older.mkdir()
    info = (tmp_path / "acme_omniq-1.5.dist-info").rename(older / "acme_omniq-1.4.dist-info")
    (info / "entry_points.txt").write_text("[omniq.backends]\nformer = acme_hidden:AcmeBackend\n")
    install("acme-omniq", "acme", "acme_hidden", None)
    sys.path.append(str(older))
    BACKENDS.refresh()
    assert "acme" in BACKENDS.names()
    assert "former" not in BACKENDS.names()


def test_what_is_left_of_a_distribution_that_was_removed_offers_nothing(
    install: Install, tmp_path: Path
) -> None:
    install("acme-omniq", "acme", "acme_left", WORKING.format(version=(0, 1)))
    install("good-omniq", "good", "acme_stays", WORKING.format(version=(0, 1)))
    (tmp_path / "acme_omniq-1.5.dist-info" / "METADATA").unlink()
    BACKENDS.refresh()
    assert "acme" not in BACKENDS.names()
    assert backend_class("good")


def test_registries_of_other_groups_see_what_was_installed_after_a_refresh(
    install: Install, tmp_path: Path
) -> None:
    things: Registry[object] = Registry("acme.things", "thing")
    assert things.names() == []
    install("acme-omniq", "acme", "acme_thing", WORKING.format(version=(0, 1)))
    points = tmp_path / "acme_omniq-1.5.dist-info" / "entry_points.txt"
    points.write_text(f"{points.read_text()}[acme.things]\none = acme_thing:AcmeBackend\n")
    things.refresh()
    assert [str(info) for info in things] == ["acme-omniq 1.5 (acme_thing:AcmeBackend)"]
