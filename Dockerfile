# The bundles with all they need, for CPUs or for CUDA:
#
#   docker build -t radiographs .                             # CPU
#   docker build -t radiographs --build-arg DEVICE=cuda .     # torch with CUDA's libraries, 3 GB more
#   docker run --rm -v DIR:/data:ro -v OUT:/out radiographs python scripts/inspect_dataset.py /data --output_dir /out
#   docker run --rm --gpus all --shm-size 2g -v DIR:/data:ro -v OUT:/out radiographs \
#     python scripts/train_all.py run /data --work_dir /out
#
# Not built: no builder was at hand. Linted with hadolint 2.15.1, without a finding.
FROM python:3.11-slim
ARG DEVICE=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /radiographs

# torch first: it is large, and changes less often than the code. PyPI's build for Linux is that with CUDA.
COPY scripts/constraints.txt scripts/
RUN case "$DEVICE" in \
      cpu) pip install -c scripts/constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu torch ;; \
      cuda) pip install -c scripts/constraints.txt torch ;; \
      *) echo "DEVICE: found $DEVICE; expected cpu or cuda" >&2; exit 1 ;; \
    esac

COPY . .
RUN pip install -c scripts/constraints.txt -e .
CMD ["bash"]
