// Package translations loads those of kubectl's texts where kubectl is called, and nowhere else.
//
// kubectl's packages ask for texts when they are initialised, in every process of this program, and what loads them then takes 4 MB and more time than
// all other packages together. It can be told to load others, before it is asked: packages are initialised by their import paths, once what they import is
// (the language's specification, "Program initialization"), and this one comes before k8s.io/kubectl.
package translations

import (
	"os"
	"slices"

	"k8s.io/kubectl/pkg/util/i18n"
)

func init() {
	err := i18n.SetLoadTranslationsFunc(func() error {
		if !slices.Contains(os.Args, "kubectl") {
			return nil
		}
		return i18n.LoadTranslations("kubectl", nil)
	})
	if err != nil {
		panic(err) // something has asked for texts before
	}
}
