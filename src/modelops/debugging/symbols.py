"""Names for addresses in a library's data, by its ELF symbols. Called by `reading`, apart."""

import bisect
import subprocess
from typing import Any

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

MAX_SYMBOLS, MAX_NAMES = 2_000_000, 8
SHF_TLS = 0x400


def name_ranges(path: str, ranges: list[list[int]]) -> list[dict[str, Any]]:
    """For each address and size: the section with the offset in it, and the symbols there that the file still has."""
    with open(path, "rb") as file:
        elf = ELFFile(file)
        sections = [
            (s["sh_addr"], s["sh_addr"] + s["sh_size"], s.name)
            for s in elf.iter_sections()
            if s["sh_addr"] and not (s["sh_flags"] & SHF_TLS and s["sh_type"] == "SHT_NOBITS")  # .tbss takes no place
        ]
        symbols = _symbols(elf)
    starts = [start for start, _, _ in symbols]
    found: list[dict[str, Any]] = []
    for address, size in ranges:
        section = next((entry for entry in sections if entry[0] <= address < entry[1]), (0, 0, ""))
        first = max(0, bisect.bisect_right(starts, address) - 1)
        last = bisect.bisect_left(starts, address + size)
        names = [name for _, end, name in symbols[first:last] if end > address][:MAX_NAMES]
        offset = address - section[0] if section[2] else 0
        found.append({"section": section[2], "section_offset": offset, "symbols": names})
    plain = demangle([name for entry in found for name in entry["symbols"]])
    return [{**entry, "symbols": [plain[name] for name in entry["symbols"]]} for entry in found]


def _symbols(elf: ELFFile) -> list[tuple[int, int, str]]:
    """Start, end and name of every object, by address; the full table where there is one, else the dynamic one."""
    found: dict[int, tuple[int, str]] = {}
    for name in (".dynsym", ".symtab"):
        table = elf.get_section_by_name(name)
        if not isinstance(table, SymbolTableSection) or table.num_symbols() > MAX_SYMBOLS:
            continue
        for symbol in table.iter_symbols():
            if symbol["st_info"]["type"] == "STT_OBJECT" and symbol["st_size"] and symbol["st_shndx"] != "SHN_UNDEF":
                found[symbol["st_value"]] = (symbol["st_value"] + symbol["st_size"], symbol.name)
    return [(start, end, name) for start, (end, name) in sorted(found.items())]


def demangle(names: list[str]) -> dict[str, str]:
    """C++ names as written, by libstdc++ or the host's c++filt; as they are where there is neither."""
    mangled = sorted({name for name in names if name.startswith("_Z")})
    plain = {name: name for name in names}
    try:
        import cxxfilt  # type: ignore[import-untyped]  # raises where there is no libstdc++

        for name in mangled:
            try:
                plain[name] = cxxfilt.demangle(name)
            except cxxfilt.InvalidName:
                continue
    except Exception:
        try:
            done = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, timeout=5)
            plain.update(zip(mangled, done.stdout.splitlines(), strict=False))
        except (OSError, subprocess.TimeoutExpired):
            pass
    return plain
