# Sourced by run and test: a private virtual environment in .venv with kvmpy built into it.
#
# prepare NAME EXTRAS installs kvmpy[EXTRAS]; it does nothing when it has done so for these sources before.

root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)

fail() {
    echo "$0: $1" >&2
    exit 1
}

find_python() {
    for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        command -v "$python" >/dev/null 2>&1 || continue
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
    done
    fail "Python 3.11 or newer is needed${PYTHON:+ (PYTHON=$PYTHON is not)}: install the package python3"
}

check_tools() {
    "$python" -c 'import venv, ensurepip' 2>/dev/null || fail "Python's venv module is missing: install the package python3-venv"
    command -v "${CC:-cc}" >/dev/null 2>&1 || fail "there is no C compiler (${CC:-cc}): install the package gcc"
    command -v ld >/dev/null 2>&1 || fail "there is no linker (ld): install the package binutils"
    header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
    [ -e "$header" ] || fail "Python's headers are missing ($header): install the package python3-dev"
    echo '#include <linux/kvm.h>
#include <stdlib.h>' | "${CC:-cc}" -E - >/dev/null 2>&1 || fail "the C headers are missing: install the packages libc6-dev and linux-libc-dev"
}

# What an installation depends on: another interpreter, other sources or other flags make it stale.
fingerprint() {
    {
        "$python" -c 'import sys; print(sys.version, sys.prefix)'
        echo "$1 ${KVMPY_CFLAGS-} ${CC-}"
        find "$root/pyproject.toml" "$root/native" "$root/guest_images" -type f ! -name '*.pyc' -print0 |
            LC_ALL=C sort -z | xargs -0 cat
    } | sha256sum
}

prepare() {
    find_python
    now=$(fingerprint "$2")
    stamp="$root/.venv/installed-$1"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$now" ] && "$root/.venv/bin/python" -c 'import kvmpy._native' 2>/dev/null; then
        return
    fi
    check_tools
    [ -x "$root/.venv/bin/python" ] && "$root/.venv/bin/python" -c '' 2>/dev/null ||
        "$python" -m venv --clear "$root/.venv" || fail "the virtual environment .venv can't be made"
    echo "building kvmpy …" >&2
    "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root[$2]" >&2 ||
        fail "kvmpy can't be built: see above"
    echo "$now" >"$stamp"
}
