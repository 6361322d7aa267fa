package connectivity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// Greeting is what a pod says of itself and of who calls.
type Greeting struct {
	Pod    string `json:"pod"`
	Client string `json:"client"` // address
}

// maxBulk bounds what one connection gets, in time.
const maxBulk = 30 * time.Second

// Serve answers on a port until ctx ends: HTTP with a Greeting, datagrams with what they say. On the next port, a TCP connection
// that begins with 's' gets a stream of bytes, and one that begins with 'r' gets back what it sends.
func Serve(ctx context.Context, pod string, port int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	packets, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	defer packets.Close()
	bulk, err := net.Listen("tcp", fmt.Sprintf(":%d", port+1))
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	defer bulk.Close()
	greet := &http.Server{Addr: fmt.Sprintf(":%d", port), ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			host = r.RemoteAddr
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(Greeting{Pod: pod, Client: host}); err != nil {
			fmt.Fprintln(os.Stderr, "serve:", err)
		}
	})}
	defer context.AfterFunc(ctx, func() { greet.Close(); packets.Close(); bulk.Close() })()
	go echoPackets(packets)
	go acceptBulk(bulk)
	if err := greet.ListenAndServe(); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

func echoPackets(conn net.PacketConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		_, _ = conn.WriteTo(buf[:n], from) // who asked waits no longer than he wants to
	}
}

func acceptBulk(l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors: it passes
			continue
		}
		go func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(maxBulk))
			var mode [1]byte
			if _, err := io.ReadFull(conn, mode[:]); err != nil {
				return
			}
			switch mode[0] {
			case 's':
				buf := make([]byte, 1<<17)
				for err == nil {
					_, err = conn.Write(buf)
				}
			case 'r':
				buf := make([]byte, 1<<12)
				for {
					n, err := conn.Read(buf)
					if err != nil {
						return
					}
					if _, err := conn.Write(buf[:n]); err != nil {
						return
					}
				}
			}
		}()
	}
}
