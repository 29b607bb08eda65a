#!/usr/bin/env bash
# `make pytest` as a plain user without any capability: what a user gets who has no root, and what root never sees.
# (Lint says the same to everybody.) As root it takes a copy of the checkout, with an account of its own ("nobody" with
# a home), a .venv of its own, and no way back to privileges. Whoever is a plain user already just runs the tests.
# Arguments replace that.
set -euo pipefail
cd "$(dirname "$0")/.."
# Left out is what does nothing that rights could matter for; tests/pure.py sees to it that this is so.
ignored=(
  --ignore=tests/core
  --ignore=tests/sim
)
[ "$#" -gt 0 ] || set -- make pytest TESTS="${ignored[*]}"

if [ "$(id -u)" != 0 ]; then
  exec "$@"
fi

readonly ACCOUNT=65534
readonly PLAIN_PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
home=$(mktemp -d /tmp/plain.XXXXXX)
trap 'rm -rf "$home"' EXIT
mkdir "$home/checkout"
git ls-files -z --cached --others --exclude-standard | tar --create --null --ignore-failed-read --files-from=- | tar --extract --directory="$home/checkout"
# The tests that read the list of files want a repository.
git -C "$home/checkout" init --quiet
git -C "$home/checkout" add --all

# The interpreter may have to be another, since this one may live where only root may look. If it is of the same version,
# the packages are copied, which is quicker than to install them again; only where our own source lies is different.
python=$(PATH=$PLAIN_PATH command -v python3.11 || PATH=$PLAIN_PATH command -v python3)
packages=.venv/lib/python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')/site-packages
if [ -e .venv/.ready ] && [ -d "$packages" ]; then
  "$python" -m venv --without-pip "$home/checkout/.venv"
  cp -a "$packages" "$home/checkout/${packages%/*}/"
  sed -i "s|^$PWD/|$home/checkout/|" "$home/checkout/$packages"/*.pth
  touch "$home/checkout/.venv/.ready"
fi
chown -R "$ACCOUNT:$ACCOUNT" "$home"

# Root's own directories are not for this user, whatever the variables say; where packages come from is.
unset XDG_RUNTIME_DIR XDG_STATE_HOME XDG_CACHE_HOME XDG_CONFIG_HOME MAKEFLAGS MFLAGS MAKELEVEL
cd "$home/checkout"
setpriv --reuid="$ACCOUNT" --regid="$ACCOUNT" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \
  env HOME="$home" USER=nobody LOGNAME=nobody PATH="$PLAIN_PATH" "$@"
