# Functions for docker/verify and docker/measure: containers in a private network, by podman, with the storage and the
# configuration that build_and_check has made. Sourced, in the root of the project.
# shellcheck shell=bash

export BUILD_AND_CHECK=docker/build_and_check
LAB=${LAB:-${TMPDIR:-/tmp}/verify-docker}
IMAGE=localhost/verify-docker:latest
export LAB CONTAINERS_STORAGE_CONF=$LAB/etc/storage.conf CONTAINERS_CONF=$LAB/etc/containers.conf
export DISABLE_HC_SYSTEMD=true

fail() { echo "FAIL: $*" >&2; exit 1; }

limited() { timeout --kill-after=30 "$@"; }

skip_unless_possible() { # says why not, and ends the script
    local reason='' python
    python=$(grep -oE 'python:[0-9]+\.[0-9]+' docker/Dockerfile | cut -d: -f2)
    if [ "$(id -u)" != 0 ]; then reason='it needs root'
    elif ! grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release; then reason='it needs Debian 12'
    elif ! command -v apt-get >/dev/null; then reason='it needs apt-get'
    elif ! python3 -m pip --version >/dev/null 2>&1; then reason='it needs python3 with pip'
    elif ! compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/$python.*" >/dev/null; then
        reason="pyenv has no Python $python to make a base image of"
    elif ! unshare --mount --net --pid --fork true 2>/dev/null; then reason='this root may not make namespaces'
    fi
    [ -z "$reason" ] || { echo "docker: skipped, because $reason"; exit 0; }
}

# in_lab SECONDS SCRIPT ARGUMENT... runs a script of ours in mount, network and PID namespaces of its own: what it starts
# ends with it, and every container shares one loopback interface. One at a time, as build_and_check does.
in_lab() {
    limited "$1" flock -w 600 "$LAB/lock" \
        unshare --mount --net --pid --fork --kill-child --mount-proc --propagation private bash "${@:2}"
}

inside() { # prepares the namespaces, as build_and_check does for its own run
    ! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified
    mkdir -p "$LAB/store/run" "$LAB/store/libpod"
    local folder
    for folder in /run "$LAB/store/run" "$LAB/store/libpod"; do mount -t tmpfs tmpfs "$folder"; done
    ip link set lo up
    remove_containers
    trap remove_containers EXIT
}

remove_containers() { # one that others depend on is removed after them
    local _
    for _ in 1 2 3; do podman rm --all --force --time 0 >/dev/null 2>&1 || true; done
    [ -z "$(podman ps --all --quiet)" ] || fail "containers are left"
}

run() { # podman run, as strict as production
    podman run --pull never --network host --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges "$@"
}

start() { # $1 = name, then -e and -v options of podman, then the command; in the background
    local name=$1 options=()
    shift
    while [[ "${1:-}" = -[ev] ]]; do options+=("$1" "$2"); shift 2; done
    run -d --name "$name" "${options[@]}" "$IMAGE" "$@" >/dev/null
}

wait_for() { # $1 = URL
    local last=$((SECONDS + 30))
    until curl -sf --noproxy '*' -m 3 -o /dev/null "$1"; do
        [ "$SECONDS" -lt "$last" ] || fail "no answer from $1"
        sleep 0.05
    done
}
