package descriptor

import (
	"context"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metatable "k8s.io/apimachinery/pkg/api/meta/table"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apiserver/pkg/registry/rest"
)

// Age is the last narrow column of most tables.
var Age = Column{Name: "Age", Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"], Cell: func(obj runtime.Object) any {
	m, err := meta.Accessor(obj)
	if err != nil {
		return "<unknown>"
	}
	return Since(m.GetCreationTimestamp())
}}

// name is the first column of most tables.
var name = NameColumn(func(m metav1.Object) string { return m.GetName() })

// NameColumn is the column of names, for a table in which it is not the first one, or says more than the name.
func NameColumn(cell func(metav1.Object) string) Column {
	return Column{Name: "Name", Format: "name", Description: metav1.ObjectMeta{}.SwaggerDoc()["name"], Cell: func(obj runtime.Object) any {
		m, err := meta.Accessor(obj)
		if err != nil {
			return "<unknown>"
		}
		return cell(m)
	}}
}

// Since prints how long ago a time was, as kubectl users know it.
func Since(t metav1.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(time.Since(t.Time))
}

// Table prints rows of a resource that has no descriptor: the name, unless one of them is that, and these columns.
func Table(columns ...Column) rest.TableConvertor { return tableConvertor{columns: columns} }

// tableConvertor prints rows by a descriptor's columns, after the name unless that is one of them, and in its order.
type tableConvertor struct {
	columns []Column
	order   func(a, b runtime.Object) int
}

var _ rest.TableConvertor = tableConvertor{}

func (c tableConvertor) ConvertToTable(_ context.Context, obj runtime.Object, options runtime.Object) (*metav1.Table, error) {
	t := &metav1.Table{}
	columns := c.columns
	if !slices.ContainsFunc(columns, func(col Column) bool { return col.Name == name.Name }) {
		columns = append([]Column{name}, columns...)
	}
	if opt, ok := options.(*metav1.TableOptions); !ok || opt == nil || !opt.NoHeaders {
		for _, col := range columns {
			def := metav1.TableColumnDefinition{Name: col.Name, Type: col.Type, Format: col.Format, Description: col.Description}
			if def.Type == "" {
				def.Type = "string"
			}
			if col.Wide {
				def.Priority = 1
			}
			t.ColumnDefinitions = append(t.ColumnDefinitions, def)
		}
	}
	rows := func(o runtime.Object, _ metav1.Object, _, _ string) ([]any, error) {
		cells := make([]any, len(columns))
		for i, col := range columns {
			cells[i] = col.Cell(o)
		}
		return cells, nil
	}
	var err error
	if t.Rows, err = metatable.MetaToTableRow(obj, rows); err != nil {
		return nil, err
	}
	if c.order != nil {
		slices.SortStableFunc(t.Rows, func(a, b metav1.TableRow) int { return c.order(a.Object.Object, b.Object.Object) })
	}
	if l, err := meta.ListAccessor(obj); err == nil {
		t.ResourceVersion, t.Continue, t.RemainingItemCount = l.GetResourceVersion(), l.GetContinue(), l.GetRemainingItemCount()
	} else if m, err := meta.CommonAccessor(obj); err == nil {
		t.ResourceVersion = m.GetResourceVersion()
	}
	return t, nil
}
