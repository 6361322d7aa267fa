package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"os"
	"slices"
	"strconv"
)

// chart is a panel: values over numbers of Services.
type chart struct {
	title, unit string
	lines       []line
}

// line is one of those that are compared, with a value for each number of Services.
type line struct {
	name   string
	values map[int]float64
}

// draw adds a value to the panel of a title. The panels and lines come in the order of their first values.
func (b *bench) draw(title, unit, name string, size int, value float64) {
	i := slices.IndexFunc(b.charts, func(c *chart) bool { return c.title == title })
	if i < 0 {
		i = len(b.charts)
		b.charts = append(b.charts, &chart{title: title, unit: unit})
	}
	c := b.charts[i]
	j := slices.IndexFunc(c.lines, func(l line) bool { return l.name == name })
	if j < 0 {
		j = len(c.lines)
		c.lines = append(c.lines, line{name, map[int]float64{}})
	}
	c.lines[j].values[size] = value
}

const (
	panelWidth, panelHeight = 420, 300
	marginLeft, marginTop   = 64, 36
	marginRight, marginFoot = 16, 64
	columns                 = 2
)

var colours = map[string]string{"strake": "#0b6e4f", "direct": "#888888", kindIPTables: "#c44536", kindNFTables: "#e09f3e"}

// saveCharts writes all panels as one SVG. The numbers of Services are on a logarithmic scale.
func (b *bench) saveCharts(file string) error {
	rows := (len(b.charts) + columns - 1) / columns
	var w bytes.Buffer
	fmt.Fprintf(&w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", columns*panelWidth, rows*panelHeight)
	fmt.Fprintf(&w, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	for i, c := range b.charts {
		fmt.Fprintf(&w, `<g transform="translate(%d,%d)">`+"\n", i%columns*panelWidth, i/columns*panelHeight)
		c.draw(&w)
		fmt.Fprintln(&w, "</g>")
	}
	fmt.Fprintln(&w, "</svg>")
	return os.WriteFile(file, w.Bytes(), 0o644)
}

func (c *chart) draw(w *bytes.Buffer) {
	var xs []int
	top := 0.0
	for _, l := range c.lines {
		for x, y := range l.values {
			top = max(top, y)
			if !slices.Contains(xs, x) {
				xs = append(xs, x)
			}
		}
	}
	slices.Sort(xs)
	step := tick(top)
	top = step * math.Ceil(top/step)
	if top == 0 {
		top = 1
	}
	width, height := float64(panelWidth-marginLeft-marginRight), float64(panelHeight-marginTop-marginFoot)
	first, last := math.Log10(float64(xs[0])), math.Log10(float64(xs[len(xs)-1]))
	x := func(n int) float64 {
		if last == first {
			return marginLeft + width/2
		}
		return marginLeft + width*(math.Log10(float64(n))-first)/(last-first)
	}
	y := func(v float64) float64 { return marginTop + height*(1-v/top) }
	fmt.Fprintf(w, `<text x="%d" y="20" font-size="13" font-weight="bold">%s</text>`+"\n", 12, html.EscapeString(c.title))
	for v := 0.0; v <= top*1.0001; v += step {
		fmt.Fprintf(w, `<line x1="%d" x2="%g" y1="%.1f" y2="%.1f" stroke="#dddddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			marginLeft, marginLeft+width, y(v), y(v), marginLeft-6, y(v)+4, strconv.FormatFloat(v, 'g', 6, 64))
	}
	fmt.Fprintf(w, `<text x="%d" y="%d" text-anchor="end" fill="#555555">%s</text>`+"\n", marginLeft-6, marginTop-8, html.EscapeString(c.unit))
	for _, n := range xs {
		fmt.Fprintf(w, `<text x="%.1f" y="%.1f" text-anchor="middle">%d</text>`+"\n", x(n), marginTop+height+16, n)
	}
	fmt.Fprintf(w, `<text x="%.1f" y="%.1f" text-anchor="middle" fill="#555555">Services</text>`+"\n", marginLeft+width/2, marginTop+height+30)
	for i, l := range c.lines {
		colour := colours[l.name]
		if colour == "" {
			colour = "#0b6e4f"
		}
		var path string
		for _, n := range xs {
			v, ok := l.values[n]
			if !ok {
				continue
			}
			path += fmt.Sprintf("%.1f,%.1f ", x(n), y(v))
			fmt.Fprintf(w, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x(n), y(v), colour)
		}
		fmt.Fprintf(w, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", path, colour)
		at := marginLeft + float64(i)*width/float64(len(c.lines))
		fmt.Fprintf(w, `<rect x="%.1f" y="%.1f" width="10" height="10" fill="%s"/><text x="%.1f" y="%.1f">%s</text>`+"\n",
			at, marginTop+height+42, colour, at+14, marginTop+height+51, html.EscapeString(l.name))
	}
}

// tick is a round step that divides a range into about five.
func tick(top float64) float64 {
	if top <= 0 {
		return 1
	}
	raw := top / 5
	magnitude := math.Pow(10, math.Floor(math.Log10(raw)))
	for _, m := range []float64{1, 2, 5} {
		if m*magnitude >= raw {
			return m * magnitude
		}
	}
	return 10 * magnitude
}
