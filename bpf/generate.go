package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64,arm64 -cflags "-O2 -Wall -Werror -mcpu=v3 -fdebug-prefix-map=$PWD=." sock sock.c -- -I/usr/include/x86_64-linux-gnu
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64,arm64 -type stored -cflags "-O2 -Wall -Werror -mcpu=v3 -fdebug-prefix-map=$PWD=." net net.c -- -I/usr/include/x86_64-linux-gnu
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64,arm64 -cflags "-O2 -Wall -Werror -mcpu=v3 -fdebug-prefix-map=$PWD=." judge judge.c -- -I/usr/include/x86_64-linux-gnu
