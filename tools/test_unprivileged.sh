#!/usr/bin/env bash
# `make test` as a plain user without any capability: what a user gets who has no root, and what root never sees.
# As root it takes a copy of the checkout, with an account of its own ("nobody" with a home), a .venv of its own, and
# no way back to privileges. Whoever is a plain user already just runs the tests. Arguments replace `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$#" -gt 0 ] || set -- make test

if [ "$(id -u)" != 0 ]; then
  exec "$@"
fi

readonly ACCOUNT=65534
home=$(mktemp -d /tmp/plain.XXXXXX)
trap 'rm -rf "$home"' EXIT
mkdir "$home/checkout"
git ls-files -z --cached --others --exclude-standard | tar --create --null --ignore-failed-read --files-from=- | tar --extract --directory="$home/checkout"
# The tests that read the list of files want a repository.
git -C "$home/checkout" init --quiet
git -C "$home/checkout" add --all
chown -R "$ACCOUNT:$ACCOUNT" "$home"

# Root's own directories are not for this user, whatever the variables say; where packages come from is.
unset XDG_RUNTIME_DIR XDG_STATE_HOME XDG_CACHE_HOME XDG_CONFIG_HOME MAKEFLAGS MFLAGS MAKELEVEL
cd "$home/checkout"
setpriv --reuid="$ACCOUNT" --regid="$ACCOUNT" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \
  env HOME="$home" USER=nobody LOGNAME=nobody PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin "$@"
