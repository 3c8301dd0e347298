# Sourced by the other scripts: make .venv once, install this project into it, and reuse it while nothing changed.

# MONAI's advice at every start, not to run the configs of strangers, stands in the README.
export PYTHONWARNINGS=ignore::UserWarning:monai.bundle.scripts

find_python() { # argument: minor version that is too new, 14 without
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3.10 python3; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, '"${1:-14}"'))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "no Python from 3.10 to before 3.${1:-14} found; install one, or name it: PYTHON=/path/to/python bash $0" >&2
  return 1
}

make_environment() { # arguments: the extras to install
  local python extra wanted what
  if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv
    echo "export PYTHONWARNINGS=$PYTHONWARNINGS" >>.venv/bin/activate
  fi
  for extra in base "$@"; do
    wanted=$(cat pyproject.toml scripts/constraints.txt <(echo "$extra") | sha256sum)
    if [ "$(cat ".venv/installed-$extra" 2>/dev/null)" != "$wanted" ]; then
      [ "$extra" = base ] && what=. || what=".[$extra]"
      echo "installing $what and what it needs (about 1.6 GB the first time; says nothing for minutes)"
      .venv/bin/python -m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt -e "$what"
      echo "$wanted" >".venv/installed-$extra"
    fi
  done
}
