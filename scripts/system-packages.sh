#!/usr/bin/env bash
# Installs the system packages that drawing and the browser tests need where it may, and names them where it may not.
# Usage: system-packages.sh demo|test. Never fails: what is missing is skipped later, by name.
set -u

demo="libegl1 libegl-mesa0 libgl1-mesa-dri fonts-dejavu-core"
test="$demo xvfb redis-server chromium prometheus"
case "${1:-demo}" in
  demo) wanted=$demo ;;
  test) wanted=$test ;;
  *) echo "usage: $0 demo|test" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null 2>&1; then
  echo "system packages: no Debian package manager here; wanted, by their Debian names: $wanted"
  exit 0
fi

missing=""
for package in $wanted; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "install ok installed" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

run=""
if [ "$(id -u)" -ne 0 ]; then
  if sudo -n true 2>/dev/null; then run="sudo -n"; else
    echo "system packages: not allowed to install; please run: sudo apt-get install$missing"
    exit 0
  fi
fi
echo "system packages: installing$missing"
export DEBIAN_FRONTEND=noninteractive
# redis-server must not start a service of its own: the tests start private ones on free ports.
$run apt-get update -qq >/dev/null 2>&1
# shellcheck disable=SC2086
$run env RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 \
  || echo "system packages: could not install all of:$missing"
exit 0
