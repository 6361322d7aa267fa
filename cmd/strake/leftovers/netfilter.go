package leftovers

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// NFTNames lists the names of nftables' tables and chains of this network namespace, in all families; those of iptables-nft are among
// them. A kernel without nftables has none.
func NFTNames() (tables, chains []string, err error) {
	t, err := nftDump(unix.NFT_MSG_GETTABLE, unix.NFTA_TABLE_NAME)
	if err != nil {
		return nil, nil, err
	}
	c, err := nftDump(unix.NFT_MSG_GETCHAIN, unix.NFTA_CHAIN_NAME)
	for _, n := range t {
		tables = append(tables, n[0])
	}
	for _, n := range c {
		chains = append(chains, n[0])
	}
	return tables, chains, err
}

// nftDump lists some attributes of each object of a kind.
func nftDump(get int, attrs ...uint16) ([][]string, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|get, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	var out [][]string
	for _, m := range msgs {
		row := make([]string, len(attrs))
		for i, attr := range attrs {
			if row[i], err = nftName(m, attr); err != nil {
				return nil, err
			}
		}
		out = append(out, row)
	}
	return out, nil
}

// nftName finds the attribute with the name in a message: struct nfgenmsg, then attributes.
func nftName(msg []byte, attr uint16) (string, error) {
	if len(msg) < nl.SizeofNfgenmsg {
		return "", errors.New("nftables: a message without its header")
	}
	attrs, err := nl.ParseRouteAttr(msg[nl.SizeofNfgenmsg:])
	if err != nil {
		return "", fmt.Errorf("nftables: %w", err)
	}
	for _, a := range attrs {
		if a.Attr.Type&^uint16(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == attr {
			return string(bytes.TrimRight(a.Value, "\x00")), nil
		}
	}
	return "", nil
}

// Socket options of linux/netfilter_ipv4/ip_tables.h, the same numbers in ip6_tables.h, and sizes of what they exchange.
const (
	optGetInfo    = 64
	optGetEntries = 65
	tableNameLen  = 32
	infoLen       = tableNameLen + 4 + 5*4 + 5*4 + 4 + 4 // struct ipt_getinfo
	infoSizeAt    = infoLen - 4
	entriesHead   = 40 // struct ipt_get_entries up to its entries
)

// LegacyChains lists the names of user-defined chains of iptables' older kernel half. Only tables that are there already are asked
// for: to ask for another one would make it.
func LegacyChains(proc string, family int) ([]string, error) {
	b, err := os.ReadFile(proc)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // the kernel has no such tables, or nobody has used them
	}
	if err != nil {
		return nil, err
	}
	tables := strings.Fields(string(b))
	if len(tables) == 0 {
		return nil, nil
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) // any will do, and a raw one takes CAP_NET_RAW
	if err != nil {
		return nil, fmt.Errorf("iptables: %w", err)
	}
	defer unix.Close(fd)
	level := unix.IPPROTO_IP
	if family == unix.AF_INET6 {
		level = unix.IPPROTO_IPV6
	}
	var out []string
	for _, t := range tables {
		info := make([]byte, infoLen)
		copy(info, t)
		if err := getsockopt(fd, level, optGetInfo, info); err != nil {
			return nil, fmt.Errorf("iptables: table %s: %w", t, err)
		}
		size := binary.NativeEndian.Uint32(info[infoSizeAt:])
		if size > 64<<20 {
			return nil, fmt.Errorf("iptables: table %s has %d bytes of rules", t, size)
		}
		entries := make([]byte, entriesHead+int(size))
		copy(entries, t)
		binary.NativeEndian.PutUint32(entries[tableNameLen:], size)
		if err := getsockopt(fd, level, optGetEntries, entries); err != nil {
			return nil, fmt.Errorf("iptables: table %s: %w", t, err)
		}
		out = append(out, chainNames(entries[entriesHead:])...)
	}
	return out, nil
}

// chainNames finds the heads of user-defined chains among a table's entries: error targets that carry the chain's name (struct
// xt_error_target: u16 size, name "ERROR" in 29 bytes, revision, the chain's name in 30).
func chainNames(entries []byte) []string {
	target := append([]byte("ERROR"), make([]byte, 24)...)
	var out []string
	for {
		i := bytes.Index(entries, target)
		if i < 0 || i+30+30 > len(entries) {
			return out
		}
		name, _, _ := bytes.Cut(entries[i+30:i+60], []byte{0})
		if s := string(name); s != "" && s != "ERROR" { // the table's end has this one
			out = append(out, s)
		}
		entries = entries[i+60:]
	}
}

func getsockopt(fd, level, opt int, buf []byte) error {
	n := uint32(len(buf))
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt), uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&n)), 0); errno != 0 {
		return errno
	}
	return nil
}
