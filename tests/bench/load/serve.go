package main

import (
	"errors"
	"io"
	"net"
)

const (
	requestSize = 64      // bytes of a request and of its answer
	blockSize   = 1 << 20 // bytes of a stream that are acknowledged with one byte
)

// serve echoes requests over TCP and UDP, and swallows streams, until it fails.
func serve(addr string) error {
	ln, err := net.Listen("tcp4", addr)
	if err != nil {
		return err
	}
	udp, err := net.ListenPacket("udp4", addr)
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() { failed <- echoUDP(udp.(*net.UDPConn)) }()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				failed <- err
				return
			}
			go echoTCP(c)
		}
	}()
	return <-failed
}

// echoTCP tells a request from a block by its size.
func echoTCP(c net.Conn) {
	defer c.Close()
	buf := make([]byte, requestSize+1)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if n > requestSize {
			if _, err := io.CopyN(io.Discard, c, int64(blockSize-n)); err != nil {
				return
			}
			n = 1
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

func echoUDP(c *net.UDPConn) error {
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		// A client that is gone is no reason to end.
		if _, err := c.WriteToUDPAddrPort(buf[:n], from); errors.Is(err, net.ErrClosed) {
			return err
		}
	}
}
