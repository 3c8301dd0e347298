#!/usr/bin/env bash
# Serve a folder of dental radiographs, or a DICOMweb archive, to MONAI Label's clients (3D Slicer, OHIF, the Python client).
#
#   bash scripts/serve_label.sh STUDIES [--host 127.0.0.1] [--port 8000] [--conf KEY VALUE] [options of start_server]
#   bash scripts/serve_label.sh --pacs http://127.0.0.1:8042/dicom-web [the same options]
#
# Labels and an index are written into STUDIES, fine-tuned weights and logs below scripts/monailabel_app (not in git;
# --conf weights_dir DIR puts the weights elsewhere). Labels of an archive are stored in it as DICOM SEG, and its images
# are cached in ~/.cache/monailabel or MONAI_LABEL_DATASTORE_CACHE_PATH. MONAI_LABEL_DICOMWEB_USERNAME and _PASSWORD are
# sent to it. Any MONAI_LABEL_* variable that is set already is left as it is. MONAI_LABEL_CORS_ORIGINS lets in other
# pages and names of this server: '["http://labels.example:8000"]'.
set -euo pipefail

usage() { sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
fail() {
  echo "serve_label.sh: $1" >&2
  exit 2
}

studies='' pacs='' host=127.0.0.1 port=8000
passed_on=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage && exit 0 ;;
    -i | --host) host=${2:?--host needs an address} && shift 2 ;;
    -p | --port) port=${2:?--port needs a number} && shift 2 ;;
    --pacs) pacs=${2:?--pacs needs the URL of a DICOMweb archive} && shift 2 ;;
    -c | --conf)
      [ $# -ge 3 ] || fail "--conf needs a key and a value"
      value=$3
      [[ $2 != *_dir || $3 == /* ]] || value=$PWD/$3 # the server runs in the checkout
      passed_on+=(--conf "$2" "$value") && shift 3
      ;;
    --access_log) passed_on+=("$1") && shift ;;
    -*)
      [ $# -ge 2 ] || fail "$1 needs a value; --help lists what there is"
      passed_on+=("$1" "$2") && shift 2
      ;;
    *)
      [ -z "$studies" ] || fail "found two folders, $studies and $1; expected one"
      studies=$1 && shift
      ;;
  esac
done

if [ -n "$pacs" ]; then
  [ -z "$studies" ] || fail "found --pacs and the folder $studies; expected one of them"
  [[ $pacs == http://* || $pacs == https://* ]] || fail "--pacs: found $pacs; expected http://… or https://…"
  studies=$pacs
else
  [ -n "$studies" ] || { usage >&2 && fail "found no folder of radiographs; expected one, or --pacs URL"; }
  [ -d "$studies" ] || fail "$studies: found no such folder; expected one with radiographs. Nothing was made."
  [ -w "$studies" ] || fail "$studies: found a folder that cannot be written to; expected one that can, for the labels"
  studies=$(cd "$studies" && pwd -P)
fi
[[ $port =~ ^[0-9]+$ ]] || fail "--port: found $port; expected a number"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/label_environment.sh
make_label_environment

[[ $host == *:* ]] && shown="[$host]" || shown=$host

# What MONAI Label would miss or fetch by itself; patterns are case-sensitive.
suffixes=$(printf '"*.%s",' png jpg jpeg jpe jfif tif tiff dcm dicom dic ima nii nii.gz nrrd)
suffixes=$suffixes$(tr a-z A-Z <<<"${suffixes%,}")
export MONAI_LABEL_DATASTORE_FILE_EXT="${MONAI_LABEL_DATASTORE_FILE_EXT:-[$suffixes]}"
export MONAI_LABEL_DICOMWEB_SEARCH_FILTER="${MONAI_LABEL_DICOMWEB_SEARCH_FILTER:-{\"Modality\":\"DX\"\}}"
export MONAI_LABEL_AUTO_UPDATE_SCORING="${MONAI_LABEL_AUTO_UPDATE_SCORING:-false}" # a new process after every sample
export MONAI_LABEL_TRACKING_ENABLED="${MONAI_LABEL_TRACKING_ENABLED:-false}"       # MLflow
no_proxy="127.0.0.1,localhost,::1,${no_proxy:-${NO_PROXY:-}}" # an archive on this machine is behind no proxy
export no_proxy NO_PROXY="$no_proxy"
# As an option of the app: MONAI Label's own start fails where this variable is set.
[[ " ${passed_on[*]-} " == *" cors_origins "* ]] ||
  passed_on+=(--conf cors_origins "${MONAI_LABEL_CORS_ORIGINS:-[\"http://$shown:$port\"]}")
unset MONAI_LABEL_CORS_ORIGINS
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

case $host in
  127.* | localhost | ::1) ;;
  *)
    case ${MONAI_LABEL_AUTH_ENABLE:-false} in
      [Tt]rue | 1 | [Yy]es | [Oo]n) ;;
      *)
        echo "WARNING: $host can be reached from outside and nothing asks for a password: anyone there can see, change" >&2
        echo "and delete images and labels. Set MONAI_LABEL_AUTH_ENABLE=true with MONAI_LABEL_AUTH_REALM_URI (Keycloak)," >&2
        echo "or serve on 127.0.0.1 behind a proxy with authentication." >&2
        ;;
    esac
    ;;
esac

echo "MONAI Label: http://$shown:$port serves $studies (Ctrl-C stops it)"
exec "$label_python" -m monailabel.main start_server --app scripts/monailabel_app --studies "$studies" \
  --host "$host" --port "$port" ${passed_on[@]+"${passed_on[@]}"}
