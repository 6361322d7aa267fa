package analysis

import (
	_ "embed"
	"encoding/json"
	"html/template"
	"io"
)

//go:embed matrix.html
var matrixPage string

var matrixTemplate = template.Must(template.New("matrix").Parse(matrixPage))

// page is what the page's script draws from.
type page struct {
	Ends    []End     `json:"ends"`
	Answers []*Answer `json:"answers"`
	Rows    [][]int32 `json:"rows"`
	Counts  Counts    `json:"counts"`
}

// WriteHTML writes a page with a heat map. It is whole in itself: it asks for nothing, and runs nothing but its own script.
func (m *Matrix) WriteHTML(w io.Writer, title string) error {
	data, err := json.Marshal(page{m.Ends, m.Answers, m.Rows, m.Counts})
	if err != nil {
		return err
	}
	return matrixTemplate.Execute(w, map[string]any{"Title": title, "Data": template.JS(data)}) // json.Marshal escapes what would end the script
}
