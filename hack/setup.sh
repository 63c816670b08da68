# Sourced by hack/quickstart, hack/test and the other entries: brings a bare
# Debian machine to the point where Node scripts can run. Installs missing
# Debian packages and node_modules; does nothing where nothing is missing.
# Defines `root` (the repository) and leaves the working directory there.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root"

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] ||
  fail "cannot set up stasis: this is $(uname -s) on $(uname -m), and only Linux on x86_64 is supported; use such a machine or a virtual machine"
[ -f /etc/debian_version ] && command -v apt-get >/dev/null ||
  fail "cannot set up stasis: this is not Debian (no /etc/debian_version or no apt-get); use a Debian 12 machine, or install what hack/debian-packages.txt lists and follow CONTRIBUTING.md"
[ "$(id -u)" = 0 ] ||
  fail "cannot set up stasis: it needs root (containers, ptrace, cgroups) and you are $(id -un); run it again as root, for example with sudo $0"

node_major=$(node -p 'process.versions.node.split(".")[0]' 2>/dev/null || echo none)
case $node_major in
  none) fail "cannot set up stasis: node is not installed; install Node 20 or later with npm (https://nodejs.org/en/download, or apt-get install nodejs npm where that is 20 or later)" ;;
  ? | 1?) fail "cannot set up stasis: node is version $node_major and 20 or later is wanted; install a newer one (https://nodejs.org/en/download)" ;;
esac
command -v npm >/dev/null || fail "cannot set up stasis: npm is not installed; install it (apt-get install npm)"

missing=''
for package in $(sed 's/#.*//' hack/debian-packages.txt | awk '{ print $1 }'); do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
  echo "installing Debian packages:$missing"
  export DEBIAN_FRONTEND=noninteractive
  # Stale package lists are the usual reason for a failed install: fetch new ones once, then say what is wrong.
  # shellcheck disable=SC2086
  apt-get install -y --no-install-recommends $missing >build-apt.log 2>&1 ||
    { apt-get update >build-apt.log 2>&1 && apt-get install -y --no-install-recommends $missing >>build-apt.log 2>&1; } ||
    fail "cannot install the Debian packages$missing: apt-get failed, see $root/build-apt.log"
  rm -f build-apt.log
fi

# npm rewrites node_modules/.package-lock.json on every install; our stamp says which lock file it was made from.
lock_digest=$(sha256sum package-lock.json package.json | sha256sum | cut -d' ' -f1)
if [ "$(cat node_modules/.stasis-stamp 2>/dev/null || true)" != "$lock_digest" ]; then
  echo 'installing npm packages'
  # No install scripts: nothing we use needs one, and packages get no chance to run as root.
  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error || fail "cannot install the npm packages: npm ci failed, see above"
  echo "$lock_digest" >node_modules/.stasis-stamp
fi
