# Source this from bash or zsh, from any folder: `. path/to/setup_shell.sh`. It goes to the
# repository, makes the environment if it is missing or out of date, and activates it.
#   RESEARCH_LIGHTNING_PYTHON     the Python to make .venv with; default: the newest of 3.10 to 3.13
#   RESEARCH_LIGHTNING_CONDA_ENV  the conda environment (name or path) to use instead of .venv;
#                                 an active one made from environment.yaml is used without this

if [ -z "${BASH_VERSION:-}${ZSH_VERSION:-}" ]; then
  echo "setup_shell.sh: source it from bash or zsh" >&2
  return 1
fi

if (return 0 2>/dev/null); then # sourced: leave nothing in this shell but the environment
  builtin cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]:-${(%):-%x}}")")" || return 1

  # Your cluster's own lines go into setup_cluster.sh, beside this file:
  #   module load python/3.12
  #   export WANDB_API_KEY=...
  # Git ignores it. A key written here would be copied into the provenance.json of every run.
  [ ! -f setup_cluster.sh ] || . ./setup_cluster.sh

  # A bash of its own finds or makes the environment and prints the line that activates it.
  eval "$(BASH_ENV='' bash ./setup_shell.sh prepare </dev/null || echo false)"
  return
fi

if [ "${1:-}" != prepare ]; then
  echo "setup_shell.sh: source it, do not run it: . ./setup_shell.sh" >&2
  exit 1
fi

set -euo pipefail

main() {
  prefix=$(conda_prefix)
  if [ -n "$prefix" ]; then
    activate=$(conda_activation)
  else
    prefix=.venv
    activate=". ./.venv/bin/activate"
  fi
  if ! is_current; then
    install
  fi
  echo "$activate"
}

say() {
  echo "setup_shell.sh: $*" >&2
}

fail() {
  say "$*"
  exit 1
}

# The environment holds what pyproject.toml and the constraints ask for, from this very folder.
is_current() {
  [ -x "$prefix/bin/python" ] && [ -f "$prefix/.research_lightning" ] && {
    read -r installed && read -r folder
  } <"$prefix/.research_lightning" && [ "$folder" -ef . ] && [ "$installed" = "$(fingerprint)" ]
}

fingerprint() {
  "$prefix/bin/python" -IS -c '
import hashlib, sys
files = b"".join(open(name, "rb").read() for name in ("pyproject.toml", ".ci/constraints.txt"))
print("%d.%d" % sys.version_info[:2] + "-" + hashlib.sha256(files).hexdigest())'
}

install() {
  [ -w . ] || fail "cannot write to $PWD, where the environment goes"
  take_lock
  if is_current; then # another shell did it meanwhile
    return
  fi
  if [ "$prefix" = .venv ] && ! is_usable_venv; then
    local python
    python=$(find_python)
    say "making $PWD/.venv with Python $(version_of "$python") ($python)"
    if [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
      say "the active conda environment does not hold this project; to use it, set" \
        "RESEARCH_LIGHTNING_CONDA_ENV=$CONDA_DEFAULT_ENV"
    fi
    attempt "making .venv" "$python" -m venv --clear .venv
  fi
  rm -f "$prefix/.research_lightning"
  say "installing the project and its tools into $prefix (a first time takes minutes and gigabytes)"
  pip_install -e '.[dev]'
  if [ "$(version_of "$prefix/bin/python")" = 3.13 ]; then
    install_dm_control_without_labmaze
  fi
  printf '%s\n' "$(fingerprint)" "$PWD" >"$prefix/.research_lightning.new"
  mv "$prefix/.research_lightning.new" "$prefix/.research_lightning"
  check_rendering
  say "done"
}

pip_install() {
  PIP_USER=0 attempt "pip install" "$prefix/bin/python" -I -m pip install --no-input \
    --disable-pip-version-check --constraint .ci/constraints.txt "$@"
}

# labmaze, which only dm_control's locomotion tasks need, cannot be installed on Python 3.13.
install_dm_control_without_labmaze() {
  pip_install --no-deps dm_control
  local needed=() requirement
  while read -r requirement; do
    needed+=("$requirement")
  done < <("$prefix/bin/python" -I -c '
from importlib.metadata import requires
for line in requires("dm_control") or ():
    if "labmaze" not in line and "extra" not in line:
        print(line)')
  pip_install "${needed[@]}"
}

# Run a command; on a terminal show where it is, and when it fails say why in one line.
attempt() {
  local what=$1 output
  shift
  if output=$("$@" 2>&1 | show_last_line); then
    return
  fi
  { echo "$output" >.setup_shell.log; } 2>/dev/null || true
  if [ "$(df -Pk . | awk 'NR == 2 { print $4 }')" -lt 10000 ]; then
    output="No space left on device" # not every program that ran out of space says so
  fi
  case $output in
    *"No space left on device"* | *"Disk quota exceeded"*)
      fail "$what failed: no space left on the disk of $PWD or of ${TMPDIR:-/tmp}" ;;
    *CERTIFICATE_VERIFY_FAILED*)
      fail "$what failed: the package index shows a certificate that is not trusted here; behind" \
        "a proxy, set PIP_CERT to its certificates (details: .setup_shell.log)" ;;
    *"onnection broken"* | *"NewConnectionError"* | *"Max retries exceeded"* | *"timed out"*)
      fail "$what failed: cannot reach the package index, is the network away?" \
        "(details: .setup_shell.log)" ;;
  esac
  fail "$what failed: $(grep -E '^(ERROR|Error|error)' <<<"$output" | tail -n 1)" \
    "(details: .setup_shell.log)"
}

show_last_line() {
  local line
  while IFS= read -r line; do
    printf '%s\n' "$line"
    if [ -t 2 ]; then
      printf '\r\033[K%.79s' "$line" >&2
    fi
  done
  if [ -t 2 ]; then
    printf '\r\033[K' >&2
  fi
}

# A half-made .venv, one whose Python is gone, and one that was moved or copied here are made anew.
is_usable_venv() {
  [ -f .venv/bin/activate ] && [ "$(. .venv/bin/activate && echo "$VIRTUAL_ENV")" -ef .venv ] &&
    is_supported "$(version_of .venv/bin/python)"
}

version_of() {
  "$1" -E -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

is_supported() {
  case $1 in 3.10 | 3.11 | 3.12 | 3.13) ;; *) return 1 ;; esac
}

find_python() {
  local names=(python3.13 python3.12 python3.11 python3.10 python3 python)
  local name version unsupported="" without_venv=""
  if [ -n "${RESEARCH_LIGHTNING_PYTHON:-}" ]; then
    names=("$RESEARCH_LIGHTNING_PYTHON")
  fi
  for name in "${names[@]}"; do
    version=$(version_of "$name")
    if ! is_supported "$version"; then
      unsupported+="${version:+, $name is $version}"
    elif ! "$name" -I -c 'import ensurepip, venv' 2>/dev/null; then
      without_venv=${without_venv:-python$version-venv}
    else
      command -v "$name"
      return
    fi
  done
  if [ -n "$without_venv" ]; then
    fail "Python lacks its venv module; on Debian: apt-get install $without_venv"
  fi
  fail "Python 3.10 to 3.13 is needed${unsupported}; install one, or name one by" \
    "RESEARCH_LIGHTNING_PYTHON=/path/to/python3"
}

# Held by this process until it ends, however it ends.
take_lock() {
  local python=$prefix/bin/python
  if [ "$prefix" = .venv ] && ! is_usable_venv; then
    python=$(find_python)
  fi
  { exec 9>.setup_shell.lock; } 2>/dev/null || fail "cannot write to $PWD"
  "$python" -I -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("setup_shell.sh: another shell is installing; waiting for it", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
except OSError as error:
    print(f"setup_shell.sh: no lock ({error.strerror}); start no other", file=sys.stderr)'
}

check_rendering() {
  if [ "$(uname)" = Linux ] && ! "$prefix/bin/python" -I -c '
import ctypes
for libraries in ("libEGL.so.1", "libGL.so.1"), ("libOSMesa.so.8",), ("libOSMesa.so.6",):
    try:
        raise SystemExit([ctypes.CDLL(name) for name in libraries] and 0)
    except OSError:
        pass
raise SystemExit(1)'; then
    say "no library to render without a screen (pixels, videos);" \
      "on Debian: apt-get install libegl1 libgl1, or without a GPU libosmesa6"
  fi
}

# The prefix of the conda environment to use, or nothing.
conda_prefix() {
  local wanted=${RESEARCH_LIGHTNING_CONDA_ENV:-} active=${CONDA_PREFIX:-} folder
  if [ -z "$wanted" ]; then
    case ${CONDA_DEFAULT_ENV:-base} in
      base) ;;
      research-lightning) echo "$active" ;;
      *)
        if compgen -G "$active/lib/python3.*/site-packages/research_lightning-*" >/dev/null; then
          echo "$active"
        fi
        ;;
    esac
    return
  fi
  if [ "$wanted" = "${CONDA_DEFAULT_ENV:-}" ]; then
    echo "$active"
    return
  fi
  for folder in "$wanted" "$(conda_base)/envs/$wanted" "$HOME/.conda/envs/$wanted"; do
    if [ -d "$folder/conda-meta" ]; then
      echo "$folder"
      return
    fi
  done
  fail "no conda environment $wanted; make it: conda env create -n $wanted -f environment.yaml"
}

conda_base() {
  local conda=${CONDA_EXE:-$(command -v conda || true)}
  dirname -- "$(dirname -- "${conda:-/none/bin/conda}")"
}

# The line that activates the conda environment; nothing to do when it is active.
conda_activation() {
  if [ "$prefix" -ef "${CONDA_PREFIX:-}" ]; then
    echo true
  else
    printf '. %q && conda activate %q\n' "$(conda_base)/etc/profile.d/conda.sh" "$prefix"
  fi
}

main
