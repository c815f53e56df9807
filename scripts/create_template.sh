#!/bin/sh
# Makes the template that sandboxes are cloned from, and says what it lacks:
#   scripts/create_template.sh [NAME] [--image FILE] [--storage S]
# All of it is `agentlab template build` and `agentlab template check`; see their --help.
set -eu

program=$(command -v agentlab) || program=$(dirname "$0")/../dist/agentlab
if [ ! -x "$program" ]; then
    echo "create_template: there is no agentlab in PATH, and no dist/agentlab: run make dist" >&2
    exit 1
fi
case ${1:-} in
    '' | -*) name=debian-12 ;;
    *)
        name=$1
        shift
        ;;
esac
"$program" template build "$name" "$@"
exec "$program" template check "$name"
