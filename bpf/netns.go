package bpf

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// netnsCookie names the calling thread's network namespace, as bpf_get_netns_cookie does.
func netnsCookie(cgroupRoot string) (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("bpf: socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) { // before Linux 5.14
		return askCookie(cgroupRoot, fd)
	}
	if err != nil {
		return 0, fmt.Errorf("bpf: SO_NETNS_COOKIE: %w", err)
	}
	return cookie, nil
}

// Offsets in struct bpf_sock_addr.
const (
	offUserIP4  = 4
	offUserPort = 24
)

// askCookie lets a socket connect to an address that nobody else has in mind, past a program that notes the cookie then.
func askCookie(cgroupRoot string, fd int) (uint64, error) {
	found, err := ebpf.NewMap(&ebpf.MapSpec{Name: "netns_cookie", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return 0, fmt.Errorf("bpf: namespace cookie: %w", err)
	}
	defer found.Close()
	var chance [5]byte
	rand.Read(chance[:])
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, chance[0], chance[1], chance[2]}), binary.NativeEndian.Uint16(chance[3:])|1)
	ip := to.Addr().As4()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "netns_cookie", Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R2, asm.R6, offUserIP4, asm.Word),
			asm.JNE.Imm32(asm.R2, int32(binary.NativeEndian.Uint32(ip[:])), "out"),
			asm.LoadMem(asm.R2, asm.R6, offUserPort, asm.Word),
			asm.JNE.Imm32(asm.R2, int32(port16(to.Port())), "out"),
			asm.FnGetNetnsCookie.Call(),
			asm.StoreMem(asm.R10, -8, asm.R0, asm.DWord),
			asm.Mov.Imm(asm.R0, 0),
			asm.StoreMem(asm.R10, -16, asm.R0, asm.DWord),
			asm.LoadMapPtr(asm.R1, found.FD()),
			asm.Mov.Reg(asm.R2, asm.R10),
			asm.Add.Imm(asm.R2, -16),
			asm.Mov.Reg(asm.R3, asm.R10),
			asm.Add.Imm(asm.R3, -8),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnMapUpdateElem.Call(),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		return 0, fmt.Errorf("bpf: namespace cookie: %w", err)
	}
	defer prog.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroupRoot, Attach: ebpf.AttachCGroupInet4Connect, Program: prog})
	if err != nil {
		return 0, fmt.Errorf("bpf: namespace cookie: %w", err)
	}
	defer l.Close()
	// Whether there is a way does not matter: the program comes first.
	failed := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	var cookie uint64
	if err := found.Lookup(uint32(0), &cookie); err != nil {
		return 0, fmt.Errorf("bpf: namespace cookie: %w", err)
	}
	if cookie == 0 {
		return 0, fmt.Errorf("bpf: namespace cookie: a program at %s did not see a socket of this process connect (%v)", cgroupRoot, failed)
	}
	return cookie, nil
}
