# The server of Kernelswap, for a CPU or for NVIDIA GPUs; amd64 and arm64.
#
#   docker build --build-arg DEVICE=cpu -t kernelswap:cpu .
#   docker build --build-arg DEVICE=cuda -t kernelswap:cuda .
#   docker run --rm --shm-size 2g -p 8000:8000 kernelswap:cpu tiny --max-num-seqs 64
#   docker run --rm --shm-size 2g -p 8000:8000 --gpus all -v kernelswap:/cache kernelswap:cuda Qwen/Qwen3-8B
#
# What follows the image's name are the arguments of `kernelswap serve`. /cache, the home folder, keeps models, compiled kernels and tuned tables.
# Another architecture: docker buildx build --platform linux/arm64 (a GPU there: Grace Hopper and the like).
# Podman: the same words; `podman build --format docker` keeps the HEALTHCHECK, and GPUs are `--device nvidia.com/gpu=all`.
# Shared memory: 64 MB, which containers get by default, are too little for torch's workers and for several GPUs: --shm-size.
# Amazon SageMaker: docker build --target sagemaker; the model lies in /opt/ml/model, and KERNELSWAP_ARGS holds further arguments.

ARG PYTHON=3.12
FROM docker.io/library/python:${PYTHON}-slim AS installed
ARG DEVICE=cpu

# Kernels for CPUs, and launchers of Triton's kernels, are compiled when they are first needed.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# torch comes first: it is most of the image, and changes least.
COPY pyproject.toml /build/
RUN case "$DEVICE" in \
        cpu) index=https://download.pytorch.org/whl/cpu ;; \
        cuda) index=https://pypi.org/simple ;; \
        *) echo "DEVICE=$DEVICE cannot work: it must be cpu or cuda" >&2; exit 1 ;; \
    esac \
    && requirement="$(python -c "import tomllib; print(tomllib.load(open('/build/pyproject.toml', 'rb'))['project']['dependencies'][0])")" \
    && pip install --no-cache-dir --index-url "$index" "$requirement"

COPY README.md LICENSE /build/
COPY framework /build/framework
COPY triton_kernels /build/triton_kernels
COPY experiments /build/experiments
RUN pip install --no-cache-dir /build && rm -rf /build

RUN useradd --create-home --uid 1000 kernelswap && mkdir /cache && chown kernelswap /cache
ENV HOME=/cache HF_HOME=/cache/huggingface XDG_CACHE_HOME=/cache TRITON_CACHE_DIR=/cache/triton
USER kernelswap
WORKDIR /home/kernelswap
VOLUME /cache

FROM installed AS sagemaker
EXPOSE 8080
# SageMaker gives the word "serve" as an argument, which is passed over.
ENTRYPOINT ["sh", "-c", "exec kernelswap serve --model /opt/ml/model --port 8080 $KERNELSWAP_ARGS"]

FROM installed AS server
EXPOSE 8000
HEALTHCHECK --start-period=10m --interval=10s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["kernelswap", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["tiny"]
