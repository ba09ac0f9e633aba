"""The Python files of a reward under one hash, and a way to run just those bytes.

A reward's file may import others that lie beside it, and these decide as much as it
does. What it imports from installed packages and the standard library belongs to the
environment and is not looked at.
"""

import ast
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from fgrpo_secure.errors import RewardError

# Folders of what is installed, which may lie within a project's own.
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_MOST_FILES = 200


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One Python file as it was read.

    Attributes:
        path: where it lies.
        name: from the folder of the reward's file, with "/".
        code: its bytes.
    """

    path: Path
    name: str
    code: bytes

    @property
    def is_package(self) -> bool:
        """Whether modules lie within."""
        return self.path.name == "__init__.py"

    @property
    def does_nothing(self) -> bool:
        """Whether it is a package's file without more than a docstring."""
        tree = _parsed(self.code)
        empty = tree is not None and all(
            isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
            for line in tree.body
        )
        return self.is_package and empty


@dataclass(frozen=True, slots=True)
class RewardSources:
    """A reward's file and what it imports from its own folder.

    Attributes:
        name: what a policy calls the reward: "file.py:function" without the folder, or
            "module:function".
        module: the name under which its file is imported.
        files: all of them by the names under which they are imported.
    """

    name: str
    module: str
    files: Mapping[str, SourceFile]

    @property
    def sha256(self) -> str:
        """Hex. Of a file that stands alone as `sha256sum` prints it.

        With others it is that of the lines which `sha256sum` prints of all of them,
        named from the folder of the reward's file and sorted by name.
        """
        own = self.files[self.module]
        hashes = {
            source.name: hashlib.sha256(source.code).hexdigest()
            for source in self.files.values()
            if source is own or not source.does_nothing
        }
        if len(hashes) == 1:
            return hashes[own.name]
        lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
        return hashlib.sha256(lines.encode()).hexdigest()


def reward_sources(target: str, directory: Path) -> RewardSources:
    """Read a reward's file and those that it imports from its own folder.

    Nothing of it is run, nor of the packages that it lies in. An import counts wherever
    it stands in a file, and however many files lead to it.

    Args:
        target: "module:function" or "file.py:function".
        directory: What relative file names resolve from.

    Raises:
        RewardError: There is no such file, or one of them has no source.
    """
    place, _, function = target.rpartition(":")
    file = _source_file(target, place, directory).absolute()
    own = place.endswith(".py")
    module = f"fgrpo_reward_{file.stem}" if own else place
    shown = file.name if own else place
    files = {module: SourceFile(file, file.name, _read(target, file))}
    left = [module]
    while left:
        name = left.pop()
        for imported in _imports(name, files[name]):
            if imported in files:
                continue
            path = _found(target, imported, file.parent, alone="." not in module)
            relative = path and _name_within(path, file.parent)
            if path is None or relative is None:
                continue
            if path.suffix != ".py":
                raise RewardError(
                    f"The reward {target} imports {imported}, which is no Python "
                    "source that could be checked.",
                    "Keep beside a reward Python files only, and install the rest.",
                )
            files[imported] = SourceFile(path, relative, _read(target, path))
            left.append(imported)
            if len(files) > _MOST_FILES:
                raise RewardError(
                    f"The reward {target} imports more than {_MOST_FILES} files of its "
                    "own folder.",
                    "Put it into a folder of its own, with what it needs.",
                )
    return RewardSources(f"{shown}:{function}", module, files)


def run_pinned(sources: RewardSources) -> ModuleType:
    """Import a reward's module by the bytes that were read, and by no others.

    Compiled code beside a file is not looked at, nor is a file that was exchanged.

    Raises:
        RewardError: A module by the name of one of its own is there already.
        BaseException: Whatever importing it raises.
    """
    for name, source in sources.files.items():
        loaded = sys.modules.get(name)
        place = getattr(loaded, "__file__", None)
        if loaded and name != sources.module and place != str(source.path):
            raise RewardError(
                f"The reward {sources.name} imports a file {source.path.name} where "
                "another module has that name.",
                "Give the file another name.",
            )
        sys.modules.pop(name, None)
    finder = _Pinned(sources.files)
    sys.meta_path.insert(0, finder)
    try:
        module = importlib.import_module(sources.module)
        # What a function imports when it is called has to be these bytes, too.
        for name in sources.files:
            importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
    return module


class _Pinned(MetaPathFinder, Loader):
    """Has Python import some modules from bytes in memory."""

    def __init__(self, files: Mapping[str, SourceFile]) -> None:
        self._files = files

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Where a module of ours lies; nothing of others."""
        source = self._files.get(fullname)
        if source is None:
            return None
        within = [str(source.path.parent)] if source.is_package else None
        return importlib.util.spec_from_file_location(
            fullname, source.path, loader=self, submodule_search_locations=within
        )

    def exec_module(self, module: ModuleType) -> None:
        """Run a module's bytes."""
        source = self._files[module.__name__]
        exec(compile(source.code, str(source.path), "exec"), vars(module))  # noqa: S102


def _read(target: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        raise RewardError(
            f"The file {file.name} of the reward {target} cannot be read.",
            "See that it is there and that this account may read it.",
        ) from None


def _source_file(target: str, place: str, directory: Path) -> Path:
    if place.endswith(".py"):
        return directory / place
    found = _spec_unrun(place)
    if found is None or not found.has_location or not found.origin:
        raise RewardError(
            f"There is no source file for the reward {target}.",
            "Name a module that is a Python file, or a file of your own: "
            "file.py:function.",
        )
    if not found.origin.endswith(".py"):
        raise RewardError(
            f"The reward {target} is not Python source, whose file could be checked.",
            "Name a module that is a Python file.",
        )
    return Path(found.origin)


def _imports(name: str, source: SourceFile) -> Iterator[str]:
    """Names that a module may import, the packages around them before each."""
    package = name if source.is_package else name.rpartition(".")[0]
    wanted = [package] if package else []
    tree = _parsed(source.code)
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Import):
            wanted += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                above = above[: len(above) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            wanted += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    for one in wanted:
        steps = one.split(".")
        yield from (".".join(steps[: count + 1]) for count in range(len(steps)))


def _parsed(code: bytes) -> ast.Module | None:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # To run it says what is wrong with it.
        return None


def _found(target: str, name: str, folder: Path, *, alone: bool) -> Path | None:
    """The file that a name is imported from; None where no file is.

    Args:
        target: for the error.
        name: of a module.
        folder: of the reward's file.
        alone: whether that is in no package, so that it may put its folder on the path
            when it runs.

    Raises:
        RewardError: it could then be either of two files.
    """
    try:
        spec = _spec_unrun(name)
    except (ImportError, ValueError, AttributeError):
        spec = None
    beside = folder.joinpath(*name.split("."))
    choices = (beside.with_name(f"{beside.name}.py"), beside / "__init__.py")
    there = next((one for one in choices if alone and one.is_file()), None)
    if spec is None:
        return there
    path = Path(spec.origin).absolute() if spec.has_location and spec.origin else None
    if there is not None and (path is None or _name_within(path, folder) is None):
        raise RewardError(
            f"The reward {target} imports {name}, which is a file beside it and "
            "another module as well.",
            "Give the file another name.",
        )
    return path


def _name_within(path: Path, folder: Path) -> str | None:
    """How a file is called from a folder; None where it is not of the folder's own.

    By either spelling: a link leads into a folder as well as out of it.
    """
    stdlib = Path(sysconfig.get_path("stdlib"))
    if folder.name in _INSTALLED or path.is_relative_to(stdlib):
        return None
    followed = path.parent.resolve() / path.name
    for one, around in ((path, folder), (followed, folder.resolve())):
        if one.is_relative_to(around):
            inside = one.relative_to(around)
            return None if _INSTALLED & set(inside.parts) else inside.as_posix()
    return None


def _spec_unrun(place: str) -> ModuleSpec | None:
    """Where a module lies, found without importing the packages around it."""
    within: Sequence[str] | None = None
    spec = None
    steps = place.split(".")
    for count in range(1, len(steps) + 1):
        name = ".".join(steps[:count])
        spec = next(
            (
                found
                for finder in sys.meta_path
                if (found := finder.find_spec(name, within)) is not None
            ),
            None,
        )
        if spec is None:
            return None
        within = spec.submodule_search_locations
        if within is None and count < len(steps):
            return None
    return spec
