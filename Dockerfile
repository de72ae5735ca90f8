# An image of this project, as launch/cluster/kubernetes_train.yaml starts it. One file for both kinds of machine:
#
#   docker build -t rankmixer_dist:cpu .
#   docker build -t rankmixer_dist:cuda --build-arg RANKMIXER_DEVICE=cuda .
#   docker run --rm --shm-size=8g --gpus all rankmixer_dist:cuda            # the doctor
#
# Neither needs a GPU to be built. CUDA comes with the wheels, the driver from the machine that runs it. Where pip takes
# packages from: --build-arg PIP_INDEX_URL=... and PIP_EXTRA_INDEX_URL=..., or --secret id=pip.conf,src=..., which leaves
# no password in the image. With PyTorch's index of CPU wheels among them the CPU image is about 5 GB smaller.
FROM debian:trixie-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 rankmixer \
    && useradd --uid 1000 --gid rankmixer --create-home rankmixer \
    && install -d -o rankmixer -g rankmixer /opt/rankmixer_dist /opt/rankmixer_dist/data /opt/rankmixer_dist/runs
WORKDIR /opt/rankmixer_dist
# A number, by which Kubernetes can see that it is not root.
USER 1000:1000

# The packages, which change with the pins alone: every other change to the project leaves this layer as it is.
ARG RANKMIXER_DEVICE=cpu
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# Also for launch/install.sh where somebody starts it in a container: a machine without a GPU would make it start over.
ENV RANKMIXER_DEVICE=${RANKMIXER_DEVICE}
COPY --chown=1000:1000 pyproject.toml ./
COPY --chown=1000:1000 launch/install.sh launch/
COPY --chown=1000:1000 rankmixer_dist/environment/constraints.txt rankmixer_dist/environment/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf,uid=1000 \
    PIP_NO_CACHE_DIR=1 bash launch/install.sh --packages

COPY --chown=1000:1000 . .
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf,uid=1000 \
    PIP_NO_CACHE_DIR=1 bash launch/install.sh

# What the NVIDIA runtime lends a container of the driver: CUDA, and libnvidia-ml.so.1 with nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD [".venv/bin/python", "launch/doctor.py"]
