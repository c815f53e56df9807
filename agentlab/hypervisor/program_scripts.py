r"""The shell scripts that keep a program in the guest, for `agentlab.hypervisor.programs`.

All that is known of a program lies in its own directory, so that no caller has to remember
anything and every call may come twice:

    program            what is run, sourced by a shell that is the user already
    pid, sid           the keeper (with its time of birth, since numbers come back) and the program
    o.N, o.N.y         a piece of stdout, and the sign that it is whole; an empty one is the end
    e.N, e.N.y         the same of stderr
    i.P, i.P.y         input from byte P on, and its length
    status             how the program ended, 128 + n for a signal
    out err in         the program's own pipes; they belong to its user, so that /dev/stdout opens
    *.room feed news   pipes that wake whoever waits: nothing here looks again and again
    full waiting …     1 while somebody waits there.  Set, then looked once more, then waited for;
                       the other side first does its work and then looks whether it is set.

A pipe holds 64 KiB, `dd` takes what is in it, and stops at PIECES that nobody has fetched: so much
room a program takes, however much it writes.  In the course of a stream little runs but builtins,
since a process costs 10 ms in an emulated guest.  What is more than a piece comes compressed: the
guest agent takes seconds for an answer of 700 kB, and 0.3 s for one of 100 (tried).  No argument is
ever empty, for not all of Proxmox's ways keep an empty one.
"""

from __future__ import annotations

PIECES = 8  # of a stream that wait to be fetched, 64 KiB at most each
OUT_AT_ONCE, ERR_AT_ONCE = 4, 1  # pieces in one answer
WINDOW = 512 << 10  # bytes of input that may wait
MOST = 16  # programs of one guest
FORGOTTEN = 60  # minutes after which a program that nobody asks for is ended

# $1 is a number of a process: sets `born`, what tells it from a later one of the same number.
_BORN = """
born() {
    line= born=
    read -r line 2>/dev/null <"/proc/$1/stat" || return 1
    set -- ${line##*) }
    [ "$1" != Z ] && born=${20}
}
"""

# Ends a session, whatever groups its processes are in, and forgets what it kept here.  A process
# may be born while the list is read, and one that is killed is there for a moment more: with KILL
# it is looked again until none is left, for two seconds at most.
_END_SESSION = """
end_session() {
    for tenth in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        found=
        for each in /proc/[0-9]*; do
            line=
            read -r line 2>/dev/null <"$each/stat" || continue
            process=${each#/proc/}
            set -- "$1" "$2" ${line##*) }
            [ "$6" = "$1" ] && [ "$3" != Z ] && [ "$3" != X ] || continue
            kill "-$2" "$process" 2>/dev/null && found=1
        done
        [ "$2" = KILL ] && [ -n "$found" ] || return 0
        [ "$tenth" = 1 ] || sleep 0.1
    done
}
# What was killed in the midst of making a file may put it there while the rest is removed.
forget_program() {
    for tenth in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        rm -rf "$1" 2>/dev/null
        [ -e "$1" ] || return 0
        sleep 0.1
    done
}
end_keeper() {
    keeper= since=
    read -r keeper since 2>/dev/null <pid
    born "$keeper" && [ "$born" = "$since" ] && end_session "$keeper" KILL
    :
}
"""

# $1 directory, $2 uid, $3 gid, $4 user, $5 home, $6 shell, $7 input or none.
KEEPER = (
    _BORN
    + """
cd "$1" || exit 1
born $$
echo "$$ $born" >pid
exec 5<>news
tell() { [ -s waiting ] && echo >&5; }
pieces() {
    n=0 asked=
    while :; do
        if [ -e "$1.$((n - PIECES))" ]; then
            if [ -n "$asked" ]; then read -r _ <&4; fi
            echo 1 >"$1.full"
            asked=1
            continue
        fi
        [ -n "$asked" ] && : >"$1.full"
        asked=
        dd "of=$1.$n" bs=65536 count=1 <&3 2>/dev/null &
        echo $! >"$1.dd"
        wait $! || { echo 1 >broken; : >"$1.$n"; }
        : >"$1.$n.y"
        tell
        [ -s "$1.$n" ] || return
        n=$((n + 1))
    done
}
feed() {
    pos=0 asked=
    while :; do
        end= len=
        if [ -s "i.$pos.y" ] && read -r len <"i.$pos.y"; then
            cat "i.$pos" >&3 2>/dev/null || { echo 1 >in.closed; break; }
            rm -f "i.$pos" "i.$pos.y"
            pos=$((pos + len))
            echo $pos >in.pos
            [ -s in.full ] && echo >&7
        elif [ -s in.end ] && read -r end <in.end && [ "$pos" -ge "$end" ]; then
            break
        else
            if [ -n "$asked" ]; then read -r _ <&6; fi
            echo 1 >in.hungry
            asked=1
            continue
        fi
        asked=
    done
    [ -s in.full ] && echo >&7
}
pieces o 3<out 4<>o.room &
pieces e 3<err 4<>e.room &
from=/dev/null feeder=
if [ "$7" = input ]; then
    from=in
    feed 3>in 6<>feed 7<>in.room &
    feeder=$!
fi
drop=
[ "$2" = "$(id -u)" ] || drop="setpriv --reuid=$2 --regid=$3 --init-groups --"
(
    read -r sid _ </proc/self/stat && echo "$sid" >sid
    umask 022
    exec 5>&-
    exec setsid $drop env -i HOME="$5" USER="$4" LOGNAME="$4" SHELL="$6" LANG=C.UTF-8 \
        PATH="$5/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        /bin/sh -c '. /proc/self/fd/9' <"$from" >out 2>err 9<program
) &
program=$!
wait $program
status=$?
if [ "$7" = input ]; then
    echo 1 >in.closed
    kill $feeder 2>/dev/null
    [ -s in.full ] && echo 1<>in.room
fi
echo $status >status
tell
wait
tell
"""
).replace("PIECES", str(PIECES))

# Ended programs that nobody has cleaned away, and those whose client has gone.
_PRUNE = (
    (
        """
prune() {
    set -- "$base"/*
    [ -e "$1" ] || return 0
    for each in $(find "$base" -mindepth 2 -maxdepth 2 -name seen -mmin +FORGOTTEN); do
        each=${each%/seen}
        ( cd "$each" || exit
          number=
          read -r number 2>/dev/null <sid
          [ -s status ] || [ -z "$number" ] || end_session "$number" KILL
          end_keeper )
        forget_program "$each"
    done
    set -- "$base"/*
    [ $# -le MOST ]
}
"""
    )
    .replace("FORGOTTEN", str(FORGOTTEN))
    .replace("MOST", str(MOST))
)

# $1 base, $2 id, $3 first piece of stdout wanted, $4 of stderr, $5 seconds to wait for one.
_FETCH = (
    (
        """
cd "$1/$2" 2>/dev/null || { echo gone; exit 0; }
: >seen
on=$3 en=$4 pause=$5
exec 5<>news
forget() {
    n=$(($2 - 1)) old=
    while [ "$n" -ge 0 ] && [ -e "$1.$n.y" ]; do
        old="$old $1.$n $1.$n.y"
        n=$((n - 1))
    done
    [ -z "$old" ] || rm -f $old
    [ -s "$1.full" ] && echo 1<>"$1.room"
    :
}
see() {
    n=$2 list= end=
    while [ -e "$1.$n.y" ]; do
        [ -s "$1.$n" ] || { end=1; break; }
        [ $((n - $2)) -lt "$3" ] || break
        list="$list $1.$n"
        n=$((n + 1))
    done
}
look() {
    status= over= cut=
    [ -s status ] && read -r status <status
    see e "$en" ERR_AT_ONCE
    el=$list enext=$n eend=$end
    see o "$on" OUT_AT_ONCE
    ol=$list onext=$n oend=$end
    [ -n "$status" ] && [ -n "$oend" ] && [ -n "$eend" ] && over=1
    :
}
idle() {
    [ -n "$2" ] && return 0
    number= where=
    read -r number 2>/dev/null <"$1.dd"
    [ -n "$number" ] && [ -d "/proc/$number" ] || return 1
    read -r where 2>/dev/null <"/proc/$number/wchan"
    case $where in *pipe* | 0 | '') return 0 ;; esac
    return 1
}
forget o "$on"
forget e "$en"
round=0
while :; do
    round=$((round + 1))
    echo 1 >waiting
    look
    [ -n "$over" ] && break
    [ "$onext" -ge $((on + OUT_AT_ONCE)) ] && break
    ending=
    if [ -n "$ol$el" ]; then
        pause=0.1
    elif [ -n "$status" ]; then
        ending=1 pause=2
    fi
    if timeout "$pause" dd bs=4096 count=1 <&5 >/dev/null 2>&1; then
        [ $round -lt 4 ] && continue
        ending=
    fi
    look
    [ -z "$ending" ] || [ -n "$ol$el$over" ] || { idle o "$oend" && idle e "$eend" && cut=cut over=1; }
    break
done
: >waiting
word=running
if [ -n "$over" ]; then
    word=$status
elif [ -z "$status$ol$el" ]; then
    keeper= since=
    if read -r keeper since 2>/dev/null <pid; then
        born "$keeper" && [ "$born" = "$since" ] || [ -s status ] || word=lost
    elif [ -n "$(find . -maxdepth 0 -mmin +1)" ]; then
        word=lost
    fi
fi
say() {
    set -- "$1" "$2" "$3" $4
    case $# in 4) how=plain ;; *) how=gzip ;; esac
    [ $# -gt 3 ] || return 0
    printf '%s %s %s %s ' "$1" "$2" "$3" $how
    shift 3
    if [ $how = gzip ]; then gzip -c1 "$@" 2>/dev/null | base64 -w0; else base64 -w0 "$1"; fi
    echo
}
say out "$on" "$onext" "$ol"
say err "$en" "$enext" "$el"
[ -s broken ] && cut="$cut broken"
echo "end $word $cut"
"""
    )
    .replace("ERR_AT_ONCE", str(ERR_AT_ONCE))
    .replace("OUT_AT_ONCE", str(OUT_AT_ONCE))
)

FETCH = _BORN + _FETCH

# $1 base, $2 id, $3 0, $4 0, $5 seconds, $6 user, $7 bytes of stdin, $8 input or none,
# $9 the keeper's script.
START = (
    _BORN
    + _END_SESSION
    + _PRUNE
    + """
base=$1 id=$2 pause=$5 size=$7 input=$8 keeper=$9
refuse() { echo "refused $1"; exit 0; }
entry=$(getent passwd "$6") || refuse user
if [ ! -d "$base/$id" ]; then
    mkdir -p -m 700 "$base" 2>/dev/null || refuse room
    prune || refuse many
fi
umask 077
if mkdir "$base/$id" 2>/dev/null; then
    cd "$base/$id" || refuse room
    pipes="out err o.room e.room news" own="out err program"
    [ "$input" != input ] || { pipes="$pipes in feed in.room" own="$own in"; }
    mkfifo $pipes && cat >program && : >seen && [ "$(wc -c <program)" -eq "$size" ] ||
        { cd / && rm -rf "$base/$id"; refuse room; }
    old=$IFS
    IFS=:
    set -f
    set -- $entry
    IFS=$old
    set +f
    [ "$3" = "$(id -u)" ] || chown "$3" $own
    setsid /bin/sh -c "$keeper" keeper "$base/$id" "$3" "$4" "$1" "$6" "${7:-/bin/sh}" "$input" \
        </dev/null >/dev/null 2>&1 &
else
    [ -d "$base/$id" ] || refuse room
fi
set -- "$base" "$id" 0 0 "$pause"
"""
    + _FETCH
)

# $1 base, $2 id, $3 first byte, $4 bytes on stdin, $5 bytes in all, or more, $6 seconds to wait.
FEED = """
cd "$1/$2" 2>/dev/null || { echo gone; exit 0; }
: >seen
umask 077
pos=$3 len=$4
closed() { [ -s in.closed ] || [ -s status ] || [ ! -p in ]; }
where() { at=0; read -r at 2>/dev/null <in.pos; at=${at:-0}; }
there() { [ "$len" -eq 0 ] || [ $((pos + len)) -le "$at" ] || [ -s "i.$pos.y" ]; }
full() { where; ! there && [ "$pos" -ge $((at + WINDOW)) ]; }
closed && { echo closed; exit 0; }
if full; then
    exec 7<>in.room
    echo 1 >in.full
    if full; then
        timeout "$6" dd bs=4096 count=1 <&7 >/dev/null 2>&1
        closed && { echo closed; exit 0; }
        full && { echo full; exit 0; }
    fi
    : >in.full
fi
if ! there; then
    cat >"i.$pos.$$" && [ "$(wc -c <"i.$pos.$$")" -eq "$len" ] && mv -f "i.$pos.$$" "i.$pos" &&
        echo "$len" >"i.$pos.y" || { rm -f "i.$pos.$$"; echo room; exit 0; }
elif [ "$len" -gt 0 ] && [ -s "i.$pos.y" ]; then
    was=
    read -r was 2>/dev/null <"i.$pos.y"
    [ "${was:-$len}" = "$len" ] || { echo clash; exit 0; }
fi
[ "$5" = more ] || echo "$5" >in.end
[ -s in.hungry ] && { : >in.hungry; echo 1<>feed; }
echo taken
""".replace("WINDOW", str(WINDOW))

# $1 base, $2 id: TERM, two seconds later KILL, and nothing is left.
END = (
    _BORN
    + _END_SESSION
    + """
cd "$1/$2" 2>/dev/null || { echo gone; exit 0; }
word=killed status= number=
[ -s status ] && read -r status <status && word="ended $status"
if [ "$word" = killed ]; then
    read -r number 2>/dev/null <sid
    if [ -n "$number" ]; then
        end_session "$number" TERM
        for tenth in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
            [ -s status ] && break
            sleep 0.1
        done
        [ -s status ] || end_session "$number" KILL
    fi
fi
end_keeper
# what was to become the program may have left the keeper's session meanwhile
if [ "$word" = killed ] && [ -z "$number" ] && read -r number 2>/dev/null <sid; then
    end_session "$number" KILL
fi
cd / && forget_program "$1/$2"
echo "$word"
"""
)
