package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/strake-io/strake/tests/bench/turns"
)

// timeout is how long a request may take. A lost packet fails the run: it is no slow sample.
const timeout = 5 * time.Second

// opener returns what opens the sessions of a mode; second tells the second server's sessions from the first's.
func opener(mode, name string) (func(addr string, second bool) (turns.Session, error), error) {
	switch mode {
	case "connect":
		return func(addr string, _ bool) (turns.Session, error) {
			return &connector{addr: addr, buf: make([]byte, requestSize)}, nil
		}, nil
	case "keepalive":
		return func(addr string, _ bool) (turns.Session, error) { return dial("tcp4", addr, requestSize, requestSize) }, nil
	case "stream":
		return func(addr string, _ bool) (turns.Session, error) { return dial("tcp4", addr, blockSize, 1) }, nil
	case "udp-connected":
		return func(addr string, _ bool) (turns.Session, error) { return dial("udp4", addr, requestSize, requestSize) }, nil
	case "udp":
		return func(addr string, _ bool) (turns.Session, error) { return newDatagram(addr) }, nil
	case "dns":
		if name == "" {
			return nil, errors.New("mode dns wants -name")
		}
		return func(addr string, second bool) (turns.Session, error) { return newQuery(addr, name, second) }, nil
	}
	return nil, fmt.Errorf("unknown mode %q", mode)
}

// connector opens a TCP connection for every request.
type connector struct {
	addr string
	buf  []byte
}

func (c *connector) Ask() error {
	conn, err := net.DialTimeout("tcp4", c.addr, timeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	// Reset at close: with TIME_WAIT the local ports would be used up after 28000 requests.
	conn.(*net.TCPConn).SetLinger(0)
	return (&line{conn: conn, out: c.buf, in: c.buf}).Ask()
}

// line asks over a connection that stays.
type line struct {
	conn    net.Conn
	out, in []byte
}

func dial(network, addr string, out, in int) (*line, error) {
	conn, err := net.DialTimeout(network, addr, timeout)
	if err != nil {
		return nil, err
	}
	return &line{conn: conn, out: make([]byte, out), in: make([]byte, in)}, nil
}

func (l *line) Ask() error {
	l.conn.SetDeadline(time.Now().Add(timeout))
	if _, err := l.conn.Write(l.out); err != nil {
		return err
	}
	_, err := io.ReadFull(l.conn, l.in)
	return err
}

// datagram names the server in every packet, so that each one is translated, and its answer back.
type datagram struct {
	conn   *net.UDPConn
	server netip.AddrPort
	buf    []byte
}

func newDatagram(addr string) (*datagram, error) {
	server, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	conn, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return nil, err
	}
	return &datagram{conn: conn, server: server, buf: make([]byte, requestSize)}, nil
}

func (d *datagram) Ask() error {
	d.conn.SetDeadline(time.Now().Add(timeout))
	if _, err := d.conn.WriteToUDPAddrPort(d.buf, d.server); err != nil {
		return err
	}
	_, from, err := d.conn.ReadFromUDPAddrPort(d.buf)
	if err == nil && from != d.server {
		return fmt.Errorf("asked %s, but %s answered", d.server, from)
	}
	return err
}

// query asks a DNS server for a name's A records (RFC 1035 4.1).
type query struct {
	line
	id uint16
}

// The AA bit means nothing in a query, and servers ignore it. The kernel answers plain queries only: with the bit, the
// very same question is the user-space server's.
const flagAA = 0x04

func newQuery(addr, name string, aa bool) (*query, error) {
	l, err := dial("udp4", addr, 0, 512)
	if err != nil {
		return nil, err
	}
	msg := []byte{0, 0, 0x01 /* RD */, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	if aa {
		msg[2] |= flagAA
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		msg = append(append(msg, byte(len(label))), label...)
	}
	l.out = append(msg, 0, 0, 1, 0, 1)
	return &query{line: *l}, nil
}

func (q *query) Ask() error {
	q.id++
	binary.BigEndian.PutUint16(q.out, q.id)
	q.conn.SetDeadline(time.Now().Add(timeout))
	if _, err := q.conn.Write(q.out); err != nil {
		return err
	}
	n, err := q.conn.Read(q.in)
	if err != nil {
		return err
	}
	if n < 12 || binary.BigEndian.Uint16(q.in) != q.id || q.in[3]&0xf != 0 || binary.BigEndian.Uint16(q.in[6:]) == 0 {
		return fmt.Errorf("no answer to query %d: % x", q.id, q.in[:n])
	}
	return nil
}
