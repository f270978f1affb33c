# Sourced by run, test and .ci/run: a private virtual environment in .venv, with kvmpy built and installed into it.
#
# prepare run|test|lint makes it ready for that, and does nothing when it is ready for these sources already.

root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
bin=$root/.venv/bin

fail() {
    echo "$0: $1" >&2
    exit 1
}

find_python() {
    if [ -n "${PYTHON-}" ]; then
        python=$PYTHON
        is_new_enough || fail "PYTHON=$PYTHON isn't Python 3.11 or newer"
        return
    fi
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        is_new_enough && return
    done
    fail "Python 3.11 or newer is needed: install the package python3"
}

is_new_enough() {
    command -v "$python" >/dev/null 2>&1 &&
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Says all that is missing at once, and the packages it is in.
check_tools() {
    packages=
    "$python" -c 'import venv, ensurepip' 2>/dev/null || lacks "Python's venv module" python3-venv
    header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
    [ -e "$header" ] || lacks "Python's headers ($header)" python3-dev
    if ! command -v "${CC:-cc}" >/dev/null 2>&1; then
        lacks "a C compiler (${CC:-cc})" "gcc libc6-dev"
    elif ! printf '#include <stdlib.h>\n#include <linux/kvm.h>\n' | "${CC:-cc}" -E - >/dev/null 2>&1; then
        lacks "the C headers (stdlib.h, linux/kvm.h)" libc6-dev
    fi
    command -v ld >/dev/null 2>&1 || lacks "a linker (ld)" binutils
    [ -z "$packages" ] || fail "install what is missing: sudo apt install$packages"
}

lacks() {
    echo "$0: this machine lacks $1: package ${2%% *}" >&2
    packages="$packages $2"
}

# What an installation depends on: another place, interpreter, sources or flags make it stale.
fingerprint() {
    {
        "$python" -c 'import sys; print(sys.version, sys.prefix)'
        printf '%s\n' "$root" "${KVMPY_CFLAGS-}" "${KVMPY_LDFLAGS-}" "${CC-}"
        find "$root/pyproject.toml" "$root/scripts/environment.sh" "$root/native" "$root/guest_images" -type f ! -name '*.pyc' -print0 |
            LC_ALL=C sort -z | xargs -0 cat
    } | sha256sum
}

# Each purpose includes those before it; .venv/purpose and .venv/built say what is installed.
extras() {
    case $1 in
        run) echo translate,debug ;;
        test) echo translate,debug,test ;;
        lint) echo translate,debug,test,lint ;;
    esac
}

includes() {
    case $1,$2 in
        lint,* | test,test | test,run | run,run) return 0 ;;
        *) return 1 ;;
    esac
}

is_ready() {
    [ "$(cat "$root/.venv/built" 2>/dev/null)" = "$now" ] &&
        includes "$(cat "$root/.venv/purpose" 2>/dev/null)" "$1" &&
        "$bin/python" -c 'import kvmpy._native' 2>/dev/null
}

prepare() {
    find_python
    now=$(fingerprint)
    is_ready "$1" && return
    check_tools
    mkdir -p "$root/build"
    exec 9>"$root/build/lock"
    if command -v flock >/dev/null 2>&1; then flock 9; fi
    is_ready "$1" || install "$1"  # another one may have done it meanwhile
    exec 9>&-
}

is_free_threaded() {
    "$python" -c 'import sys, sysconfig; sys.exit(not sysconfig.get_config_var("Py_GIL_DISABLED"))'
}

# Unicorn's wheel is a library and Python code, for any Python; its name says stable ABI, which free-threaded ones lack.
install_unicorn() {
    wheel=$(sed -n 's/^translate = \["\(.*\)"\]$/\1/p' "$root/pyproject.toml")
    "$bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --only-binary :all: \
        --abi abi3 --platform manylinux2014_x86_64 \
        --target "$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" "$wheel" 9>&- >&2
}

install() {
    "$bin/python" -c 'import pip' 2>/dev/null ||
        "$python" -m venv --clear "$root/.venv" || fail "the virtual environment .venv can't be made: see above"
    purpose=$(cat "$root/.venv/purpose" 2>/dev/null || :)
    includes "$purpose" "$1" || purpose=$1
    rm -f "$root/.venv/built"
    echo "building kvmpy, once ..." >&2
    wanted=$(extras "$purpose")
    if is_free_threaded; then
        install_unicorn || fail "Unicorn, the translate engine's library, can't be installed: see above"
        wanted=${wanted#translate}
        wanted=${wanted#,}
    fi
    (cd "$root" && "$bin/python" -m pip install --quiet --disable-pip-version-check \
        --editable ".${wanted:+[$wanted]}" 9>&-) >&2 || fail "kvmpy can't be built: see above"
    echo "$purpose" >"$root/.venv/purpose"
    echo "$now" >"$root/.venv/built"
}
