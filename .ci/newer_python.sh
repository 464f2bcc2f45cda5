#!/usr/bin/env bash
# Print the path of the newest Python, 3.12 or later, that can create environments, if any.
#
# A pyenv shim works only if its version is selected (`pyenv global`, PYENV_VERSION), so
# the interpreters behind the shims are tried as well.
set -euo pipefail

# The versions installed by pyenv, such as 3.13.0; not environments based on them.
behind_shims() {
  local root version
  root=$(pyenv root 2> /dev/null) || root=${PYENV_ROOT:-${HOME:-~}/.pyenv}
  { pyenv versions --bare 2> /dev/null || ls "$root/versions" 2> /dev/null || true; } |
    { grep -E "^${1//./\\.}\.[0-9]+$" || true; } | sort -rV |
    while read -r version; do echo "$root/versions/$version/bin/python$1"; done
}

for minor in 3.14 3.13 3.12; do
  for python in $(type -ap "python$minor") $(behind_shims "$minor"); do
    if answer=$("$python" -c 'import ensurepip, sys, venv
print("%d.%d" % sys.version_info[:2], sys.executable)' 2> /dev/null) &&
      [ "${answer%% *}" = "$minor" ]; then
      echo "${answer#* }"
      exit
    fi
  done
done
