package demo

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// Call requests url once per interval, count times or until ctx ends (count 0), and writes a line per request to out: the time
// taken and the answer, or the error. Every request has a connection of its own, so that each is balanced anew. The scheme
// udp sends a datagram. It fails if the last request did.
func Call(ctx context.Context, url string, interval time.Duration, count int, out io.Writer) error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	ask := func() (string, error) { return get(ctx, client, url) }
	if addr, ok := strings.CutPrefix(url, "udp://"); ok {
		ask = func() (string, error) { return exchange(ctx, addr) }
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for n := 1; ; n++ {
		began := time.Now()
		answer, err := ask()
		took := time.Since(began).Round(10 * time.Microsecond)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			fmt.Fprintf(out, "%d %s error: %v\n", n, took, err)
		} else {
			fmt.Fprintf(out, "%d %s %s\n", n, took, answer)
		}
		if n == count {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// exchange sends a datagram and waits for one.
func exchange(ctx context.Context, addr string) (string, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte("?")); err != nil {
		return "", err
	}
	buf := make([]byte, 1<<10)
	n, err := conn.Read(buf)
	return strings.TrimSpace(string(buf[:n])), err
}

func get(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("HTTP %s", resp.Status)
	}
	return strings.TrimSpace(string(body)), nil
}
