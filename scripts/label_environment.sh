# Sourced by the scripts of MONAI Label: make .venv-label once (or the folder in LABEL_VENV), reuse it while nothing changed.
#
# It is an environment of its own: MONAI Label needs pydicom 2, numpy 1 and torchvision, which the main one must not have.

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

make_label_environment() { # sets label_python; the current folder has to be the checkout
  local venv=${LABEL_VENV:-.venv-label} requirements=scripts/monailabel_app/requirements.txt python wanted
  if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python 13)
    echo "making $venv with $("$python" --version); takes minutes, once" >&2
    "$python" -m venv "$venv"
  fi
  label_python=$venv/bin/python
  wanted=$(cat $requirements pyproject.toml <(pwd) | sha256sum)
  if [ "$(cat "$venv/installed-label" 2>/dev/null)" != "$wanted" ]; then
    local install=("$label_python" -m pip install --quiet --disable-pip-version-check)
    # torch first and alone: what comes after keeps the build that is there. Without build isolation, as sam2, which
    # MONAI Label asks for and which comes as source, would fetch a second torch only to be built.
    "${install[@]}" "$(grep -o '^torch==[^ ]*' $requirements)" 'setuptools>=77,<81' wheel
    SAM2_BUILD_CUDA=0 "${install[@]}" --no-build-isolation -r $requirements
    "${install[@]}" --no-build-isolation --no-deps -e .
    echo "$wanted" >"$venv/installed-label"
  fi
}
