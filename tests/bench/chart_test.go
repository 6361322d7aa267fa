package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCharts(t *testing.T) {
	b := &bench{}
	for size, value := range map[int]float64{1: 9000, 1000: 8800, 50000: 8900} {
		b.draw("connect & request", "1/s", "strake", size, value)
		b.draw("connect & request", "1/s", kindIPTables, size, value/float64(size))
	}
	b.draw("alone", "s", "strake", 1, 0)
	file := filepath.Join(t.TempDir(), "x.svg")
	if err := b.saveCharts(file); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(strings.NewReader(string(data))); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v\n%s", err, data)
		}
	}
	for _, want := range []string{"connect &amp; request", ">10000<", ">50000<", kindIPTables, ">alone<"} {
		if !strings.Contains(string(data), want) {
			t.Errorf("no %q in\n%s", want, data)
		}
	}
	if strings.Contains(string(data), "NaN") {
		t.Errorf("not a number:\n%s", data)
	}
}

func TestTick(t *testing.T) {
	for top, want := range map[float64]float64{9000: 2000, 1: 0.2, 0: 1, 47: 10, 120: 50} {
		if got := tick(top); got != want {
			t.Errorf("up to %g in steps of %g, want %g", top, got, want)
		}
	}
}
